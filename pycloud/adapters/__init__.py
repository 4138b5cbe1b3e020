# SPDX-License-Identifier: Apache-2.0
"""How a cloudlet does it: one module or package per outside thing, behind `core/ports.py`."""
