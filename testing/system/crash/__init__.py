# SPDX-License-Identifier: Apache-2.0
"""Servers that die with kill -9 in every step of every Job, and what is left afterwards."""
