# SPDX-License-Identifier: Apache-2.0
"""Describe the pycloud distribution: what it contains, what it needs and how it is started.

The ranges below say what pycloud can work with; `requirements.txt` and
`requirements-dev.txt` pin the exact set that is tested.  They are made from this file by

    uv pip compile --universal --python-version 3.11 --generate-hashes setup.py -o requirements.txt

and the same with `--extra dev -o requirements-dev.txt`.
"""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

RUNTIME = [
    "click>=8.1",
    "jsonschema-rs>=0.30",
    "libvirt-python>=9.0",
    "prometheus-client>=0.20",
    "psutil>=5.9",
    "pymongo>=4.6",
    "pyramid>=2.1,<3",
    "pyramid-jinja2>=2.10",
    "PyYAML>=6.0",
    "requests>=2.31",
    "rich>=13.7",
    # Pyramid 2.1 still imports pkg_resources, which setuptools 82 dropped.
    "setuptools<82",
    "waitress>=3.0.2",
    "zeroconf>=0.131",
]

# A second WSGI server for cloudlets with hundreds of clients; chosen by a setting. The range is
# narrow because what is used of it is not its public interface; `web/granian_server.py` repeats it.
GRANIAN = ["granian>=2.8.7,<2.9"]

DEV = [
    *GRANIAN,
    "coverage>=7",
    "hypothesis>=6",
    "import-linter>=2",
    "mypy>=1.11",
    "openapi-spec-validator>=0.7",
    "playwright>=1.45",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.6",
    "schemathesis>=4",
    "types-PyYAML",
    "types-WebOb",
    "types-WebTest",
    "types-psutil",
    "types-requests",
    "types-waitress",
    "WebTest>=3.0",
]

setup(
    name="pycloud",
    version="0.1.0",
    description="A cloudlet: nearby servers that phones find by themselves and offload work to",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["pycloud", "pycloud.*"]),
    package_data={
        "": [
            "py.typed",
            "*.json",
            "*.yaml",
            "templates/**/*",
            "static/**/*",
            "locale/**/*.mo",
        ]
    },
    zip_safe=False,
    install_requires=RUNTIME,
    extras_require={"granian": GRANIAN, "dev": DEV},
    entry_points={
        "console_scripts": ["pycloud = pycloud.cli.main:main"],
        "paste.app_factory": ["api = pycloud.api:main", "manager = pycloud.manager:main"],
        "paste.server_runner": ["server = pycloud.web.serving:paste_server"],
    },
    classifiers=[
        "Environment :: Web Environment",
        "Framework :: Pyramid",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Internet :: WWW/HTTP :: WSGI :: Application",
        "Typing :: Typed",
    ],
)
