// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

// guestTypes are file systems that the guest's kernel makes by itself.
var guestTypes = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

// mounts carries over the guest's own file systems as they are and turns bind mounts into copies.
func (r *refusals) mounts(in Input) ([]*agent.Mount, []Copy) {
	var out []*agent.Mount
	var copies []Copy
	for i, m := range in.Spec.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			r.add("mounts[%d] (%s): idmapped mounts are not supported", i, m.Destination)
			continue
		}
		if !path.IsAbs(m.Destination) {
			// Older engines wrote "dev/shm"; the specification lets runtimes take it as absolute.
			m.Destination = "/" + m.Destination
		}
		g := &agent.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: slices.Clone(m.Options)}
		bound, isVolume := in.Binds[i]
		switch {
		case IsBind(m) && isVolume:
			g.Source = bound.Guest
			if bound.ReadOnly {
				g.Options = append(slices.DeleteFunc(g.Options, func(o string) bool { return o == "rw" }), "ro")
			}
		case IsBind(m) && in.SharedShm && path.Clean(m.Destination) == shmPath:
			g.Source = contract.ShmDir
		case IsBind(m):
			if !path.IsAbs(m.Source) {
				r.add("mounts[%d] (%s): the source %q is not absolute", i, m.Destination, m.Source)
				continue
			}
			c := Copy{Index: i, Source: path.Clean(m.Source), Destination: m.Destination, Guest: GuestCopy(in.ID, m.Destination)}
			copies = append(copies, c)
			g.Source = c.Guest
		case slices.Contains(guestTypes, m.Type):
		default:
			r.add("mounts[%d] (%s): a file system of type %q cannot be mounted in the VM from the host's %q", i, m.Destination,
				m.Type, m.Source)
			continue
		}
		out = append(out, g)
	}
	return out, copies
}

// IsBind says whether a mount is a bind mount, by type or by option.
func IsBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// GuestCopy is where the source of a bind mount lies in the guest:
// <shared>/<container id>-<16 hex>-<base name>. The hex digits depend on the destination only, so
// that the same specification gives the same request.
func GuestCopy(id, destination string) string {
	sum := sha256.Sum256([]byte(path.Clean(destination)))
	base := strings.Map(func(r rune) rune {
		if r == '/' || r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, path.Base(destination))
	return path.Join(contract.FilesDir, Shorten(id+"-"+hex.EncodeToString(sum[:8])+"-"+base))
}

const maxName = 255 // bytes of a file's name

// Shorten cuts a name that begins with what makes it unique to what a file system takes.
func Shorten(name string) string {
	if len(name) <= maxName {
		return name
	}
	end := 0
	for i := range name { // where characters begin
		if i > maxName {
			break
		}
		end = i
	}
	return name[:end]
}

// Privileged says whether a container may use every device there is.
func Privileged(s *specs.Spec) bool { return s.Linux != nil && allDevices(s.Linux.Resources) }
