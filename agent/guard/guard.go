// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guard decides, from the text of a request alone, what the host may ask of the guest: which mounts a
// specification may have, with which options, and which directories of the guest a container's requests
// may name. It is pure. Package beneath makes sure that a path leads where its text says.
package guard

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Hooks refuses all of them: each is a program of the host's choice, run with the rights of the OCI runtime
// or before the container's own limits hold.
func Hooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 it is refused here
	if len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(
		h.Poststop) > 0 {
		return fmt.Errorf("hooks are not run in the guest: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// commands are prefixes of the annotations by which OCI runtimes get settings for which the specification has no
// field for: to write a hook's output to a file outside the container, to replace the seccomp filter, to run
// another handler, to set properties of units.
var commands = []string{"run.oci.", "module.wasm", "krun.", "org.systemd.", "org.criu."}

// Annotations drops those that an OCI runtime obeys. The others are labels, for engines.
func Annotations(in map[string]string) map[string]string {
	out := maps.Clone(in)
	maps.DeleteFunc(out, func(key, _ string) bool {
		return slices.ContainsFunc(commands, func(p string) bool { return strings.HasPrefix(key, p) })
	})
	return out
}

const maxHostname = 64 // of Linux, without the final NUL

// Hostname admits valid host names. They appear in prompts, logs and /etc/hosts. An empty one means none.
func Hostname(name string) error {
	ok := len(name) <= maxHostname && !strings.HasPrefix(name, "-") && !strings.HasPrefix(name, ".") &&
		!strings.ContainsFunc(name, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
		})
	if !ok {
		return fmt.Errorf("host name %.80q: want up to %d letters, digits, '-', '_' and '.', the first no '-' or '.': %w",
			name, maxHostname, errdefs.ErrInvalidArgument)
	}
	return nil
}

// IsBind says whether a mount is a bind mount, by type or by option, as OCI runtimes see it.
func IsBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.ContainsFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" })
}

// devices are those that every container has anyway, and that are the same everywhere: a bind mount of one masks a
// file.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// IsDevice says whether a mount shows a device of the guest that every container has.
func IsDevice(m specs.Mount) bool { return IsBind(m) && slices.Contains(devices, m.Source) }

// flags are the options that every mount may have: those of mount(2) and mount_setattr(2), and propagation
// within the container.
var flags = strings.Fields(`ro rw nosuid suid nodev dev noexec exec sync async dirsync
	noatime atime nodiratime diratime relatime norelatime strictatime nostrictatime nosymfollow symfollow
	iversion noiversion mand nomand silent loud defaults
	private rprivate shared rshared slave rslave unbindable runbindable`)

// recursive are the options of bind mounts that reach the mounts below as well.
var recursive = strings.Fields(
	`rro rrw rnosuid rsuid rnodev rdev rnoexec rexec rnodiratime rdiratime rrelatime rnorelatime
	rnoatime ratime rstrictatime rnostrictatime rnosymfollow rsymfollow`)

// types are the file systems that a specification may mount, each with its own options; a "=" at the end
// stands for a value. File systems with access to a disk, the host or the guest's own state (virtiofs, 9p,
// overlay, ext4, devtmpfs, securityfs, debugfs, bpf and the like) come as a storage or not at all.
var types = map[string][]string{
	"proc":  {"hidepid=", "gid=", "subset="},
	"sysfs": nil,
	"tmpfs": {
		"size=", "mode=", "uid=", "gid=", "nr_inodes=", "nr_blocks=", "mpol=", "huge=", "inode32", "inode64",
		"noswap", "tmpcopyup",
	},
	"devpts":  {"newinstance", "ptmxmode=", "mode=", "uid=", "gid=", "max="},
	"mqueue":  nil,
	"cgroup":  nil,
	"cgroup2": nil,
	"bind":    append([]string{"bind", "rbind"}, recursive...),
}

// Mounts admits the mounts of a specification by types and options. bundle is the container's directory:
// sources of bind mounts are checked as Place does.
func Mounts(mounts []specs.Mount, bundle string) error {
	for i, m := range mounts {
		if err := one(m, bundle); err != nil {
			return fmt.Errorf("mount %d on %.200q: %w: %w", i, m.Destination, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func one(m specs.Mount, bundle string) error {
	if !path.IsAbs(m.Destination) || strings.ContainsRune(m.Destination+m.Source, 0) {
		return fmt.Errorf("the destination is not an absolute path, or there is a zero byte")
	}
	kind := m.Type
	if IsBind(m) {
		kind = "bind"
	}
	own, ok := types[kind]
	if !ok {
		return fmt.Errorf("a specification cannot mount a file system of type %.40q; bind, cgroup, cgroup2, devpts, "+
			"mqueue, proc, sysfs and tmpfs it can", m.Type)
	}
	for _, list := range m.Options {
		for o := range strings.SplitSeq(list, ",") {
			name, _, hasValue := strings.Cut(o, "=")
			if hasValue {
				name += "="
			}
			if strings.ContainsRune(o, 0) || !slices.Contains(own, name) && !slices.Contains(flags, name) {
				return fmt.Errorf("option %.100q is not one of a %s mount", o, kind)
			}
		}
	}
	if kind == "bind" && !IsDevice(m) {
		return Place(m.Source, bundle)
	}
	return nil
}
