# SPDX-License-Identifier: Apache-2.0
"""The Pyramid glue that both apps share: typed requests, permissions, errors, serving.

Nothing here knows a URL of either app, and nothing here decides what a
cloudlet may do; that is the core's.
"""
