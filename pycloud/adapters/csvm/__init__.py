# SPDX-License-Identifier: Apache-2.0
"""The `.csvm` package of old and new cloudlets: a gzip tar of disk, state and description."""

from pycloud.adapters.csvm.packages import CsvmPackages

__all__ = ["CsvmPackages"]
