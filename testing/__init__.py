# SPDX-License-Identifier: Apache-2.0
"""Tests of pycloud, one folder per kind, mirroring the paths of the package."""
