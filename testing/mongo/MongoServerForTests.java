// SPDX-License-Identifier: Apache-2.0

import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.wire.message.MongoMessage;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.List;

/**
 * Serves the MongoDB protocol from memory on a free port of the loopback interface.
 *
 * <p>It prints its port as its only line of output and ends when its standard input does, so that
 * it never outlives the test run that started it, however that run ends.
 */
public final class MongoServerForTests {
    private MongoServerForTests() {}

    public static void main(String[] arguments) throws IOException {
        MongoServer server = new MongoServer(new AtomicBackend().version(new Mongo5()));
        server.bind(new InetSocketAddress("127.0.0.1", 0));
        System.out.println(server.getLocalAddress().getPort());
        System.out.flush();
        while (System.in.read() >= 0) {
            // Nothing is expected on the input but its end.
        }
        server.shutdownNow();
    }

    /**
     * A backend in which each command happens at once, as MongoDB promises for one document.
     *
     * <p>The library changes documents in place and encodes answers later, on other threads, so
     * that without this a reader now and then gets half of the old document and half of the new.
     */
    private static final class AtomicBackend extends MemoryBackend {
        @Override
        public synchronized Document handleMessage(MongoMessage message) {
            return super.handleMessage(message).cloneDeeply();
        }
    }

    /**
     * MongoDB 5.0 under its own wire version.
     *
     * <p>The library's constant for 5.0 announces 8, which is that of 4.2 and too old for current
     * clients.
     */
    private static final class Mongo5 implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(5, 0, 0);
        }

        @Override
        public int getWireVersion() {
            return 13;
        }
    }
}
