# SPDX-License-Identifier: Apache-2.0
"""What a cloudlet does, in its own words; how it is done lives behind the ports."""
