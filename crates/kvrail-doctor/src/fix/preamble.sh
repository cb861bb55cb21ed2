# Lets NIXL use EFA through LIBFABRIC: the host's libfabric, NIXL's own libraries on the loader's path, LIBFABRIC as the default.
# Written by `kvrail fix preamble`. It may be run again, by several processes at once, and under `set -euo pipefail`.
_kvrail_python='@PYTHON@'
_kvrail_efa='@EFA@'

_kvrail_say() { printf '[kvrail] %s\n' "$*" >&2; }

# In front of LD_LIBRARY_PATH, once.
_kvrail_first() {
  case ":${LD_LIBRARY_PATH:-}:" in
    *":$1:"*) ;;
    *) export LD_LIBRARY_PATH="$1${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
  esac
}

# Links and the default backend, in the environment of that Python. Prints the directories that the loader needs, one per line.
_kvrail_mend() {
  "$_kvrail_python" -B - "$_kvrail_efa" <<'KVRAIL'
import os, re, sys, sysconfig

efa = next((d for d in (sys.argv[1] + "/lib", sys.argv[1] + "/lib64") if os.path.exists(d + "/libfabric.so.1")), None)
sites = {os.path.realpath(p) for p in [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path] if p and os.path.isdir(p)}

def say(*words):
    print("[kvrail]", *words, file=sys.stderr)

def replace(path, make):
    """Puts what make() makes at a path in one step; several processes may do so at once."""
    new = "%s/.kvrail-%d" % (os.path.dirname(path), os.getpid())
    try:
        make(new)
        os.replace(new, path)
    except OSError as error:
        say("cannot change", path + ":", error.strerror or error)
    finally:
        if os.path.lexists(new):
            os.unlink(new)

def versions(path):
    with open(path, "rb") as library:
        return {int(n) for n in re.findall(rb"\0FABRIC_1\.(\d+)(?=\0)", library.read())}

for site in sorted(sites):
    for package in ("nixl", "nixl_cu12", "nixl_cu13"):
        core, libs = ("%s/.%s.mesonpy.libs" % (site, package), "%s/%s.libs" % (site, package))
        if not os.path.isdir(libs) and not os.path.isdir(core):
            continue
        if os.path.isdir(core):
            print(core)
        plugin = next((p for p in (libs + "/nixl/libplugin_LIBFABRIC.so", core + "/plugins/libplugin_LIBFABRIC.so") if os.path.exists(p)), None)
        if efa is None or plugin is None:
            continue
        has, needs = max(versions(efa + "/libfabric.so.1"), default=0), max(versions(plugin), default=0)
        if needs > has:
            say(plugin, "needs FABRIC_1.%d, and %s has FABRIC_1.%d: nothing is changed" % (needs, efa, has))
            continue
        copies = os.listdir(libs) if os.path.isdir(libs) else []
        for name in copies:
            if re.fullmatch(r"libfabric-[0-9a-f]{8}\.so[.0-9]*", name):
                path = os.path.join(libs, name)
                if os.path.realpath(path) != os.path.realpath(efa + "/libfabric.so.1"):
                    if not os.path.islink(path) and not os.path.lexists(path + ".kvrail"):
                        os.link(path, path + ".kvrail")
                    replace(path, lambda new: os.symlink(efa + "/libfabric.so.1", new))
                    say(path, "leads to", efa + "/libfabric.so.1")
        api = "%s/%s/_api.py" % (site, package)
        try:
            with open(api, encoding="utf-8", newline="") as source:
                text = source.read()
        except OSError:
            continue
        head, found, tail = ("\n" + text).partition("\nclass nixl_agent_config:")
        body = re.split(r"\n(?=class |def |@)", tail, maxsplit=1)[0]
        before, after = 'backends: list[str] = ["UCX"]', 'backends: list[str] = ["LIBFABRIC"]'
        if found and body.count(before) == 1:
            new_text = (head + found + body.replace(before, after) + tail[len(body):])[1:]
            def write(new):
                with open(new, "w", encoding="utf-8", newline="") as out:
                    out.write(new_text)
                os.chmod(new, os.stat(api).st_mode & 0o7777)
            replace(api, write)
            say(api, "has LIBFABRIC as the default")
        elif found and after not in body:
            say(api, "is of no form that is known: the default backend stays as it is")
if efa:
    print(efa)
else:
    say("no libfabric below", sys.argv[1] + ": is the host's EFA software mounted there?")
KVRAIL
}

if _kvrail_directories="$(_kvrail_mend)"; then
  while IFS= read -r _kvrail_directory; do
    if [ -n "$_kvrail_directory" ]; then _kvrail_first "$_kvrail_directory"; fi
  done <<<"$_kvrail_directories"
else
  _kvrail_say "$_kvrail_python cannot be run: nothing was changed"
fi
export FI_PROVIDER="${FI_PROVIDER:-efa}"
export FI_EFA_USE_DEVICE_RDMA="${FI_EFA_USE_DEVICE_RDMA:-1}"
unset _kvrail_python _kvrail_efa _kvrail_directories _kvrail_directory
unset -f _kvrail_say _kvrail_first _kvrail_mend
