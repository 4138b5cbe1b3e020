# SPDX-License-Identifier: Apache-2.0
"""The command line: talks to a Cloudlet API over HTTP, starts one, and examines this machine."""
