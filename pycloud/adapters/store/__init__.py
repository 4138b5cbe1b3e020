# SPDX-License-Identifier: Apache-2.0
"""The records of a cloudlet in memory, in SQLite or in MongoDB, behind one protocol.

`documents` turns records into plain documents, `kinds` lists what is stored, `pages`
cuts lists into pages; `memory`, `sqlite` and `mongo` each hold one Store. Drivers are
imported by the module that needs them, so that choosing one does not load the other.
"""
