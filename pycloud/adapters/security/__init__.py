# SPDX-License-Identifier: Apache-2.0
"""Secrets on disk, and later the keys and certificates of this cloudlet."""
