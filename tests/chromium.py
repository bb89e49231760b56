"""The browser of the system, for tests that open pages."""

import os
import shutil

CHROMIUM = os.environ.get("LTMIA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
