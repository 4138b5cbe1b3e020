# SPDX-License-Identifier: Apache-2.0
"""What answers each operation of /api/v2: read the checked request, ask the core, show it.

No view decides who may call it (see `web.security`) and none catches an error
of the core (see `web.errors`).
"""
