# SPDX-License-Identifier: Apache-2.0
"""The parts of the demo: the story that is told, the cloudlet's side and the phone's side."""
