# SPDX-License-Identifier: Apache-2.0
"""The nouns of a cloudlet: frozen dataclasses without behaviour beyond their own rules."""
