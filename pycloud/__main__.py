# SPDX-License-Identifier: Apache-2.0
"""`python -m pycloud`, for where the command itself is not on the path."""

from pycloud.cli.main import main

if __name__ == "__main__":
    main()
