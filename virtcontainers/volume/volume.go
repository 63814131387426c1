// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package volume decides what becomes of the bind mounts of a container whose host shares nothing
// with the guest unless it is configured so: which of them is a volume of the pod that its containers have in common, which is
// kept up to date, which is a copy for one container, and which cannot be had.
//
// Kubernetes says none of this to a runtime. What is known are kubelet's paths: below its root
// directory, which may lie anywhere, they are pods/UID/volumes/PLUGIN/NAME and the like. Plan is
// pure; Look makes the observations that it needs, and Watcher tells of changes.
package volume

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Kind says how a bind mount reaches the guest.
type Kind uint8

// The kinds.
const (
	Copied      Kind = iota // a copy for this container alone
	Once                    // a copy that the pod's containers share
	Updated                 // such a copy of a directory of kubelet's, kept up to date
	Memory                  // an emptyDir in memory
	Disk                    // any other emptyDir
	Termination             // a copy of a file that is written back when the container ends
	Direct                  // a file system on a disk of the host that only the guest mounts
	Raw                     // such a disk itself
	Shared                  // a file or directory of the host as it is, live
)

// String names the kind for logs.
func (k Kind) String() string {
	return [...]string{"copy", "copy of the pod", "updated copy", "memory", "disk", "termination message", "direct volume", "raw block device", "live share"}[k]
}

// HostPath is what the configuration says of directories that are simply the host's.
type HostPath string

// What may become of them.
const (
	ReadOnly HostPath = "read-only" // a copy that the container cannot write to
	Writable HostPath = "writable"  // a copy that it can write to; the host never sees it
	Live     HostPath = "live"      // none: the host's own
	Refused  HostPath = "refused"
)

// Bind is one bind mount of a container.
type Bind struct {
	Index       int // in the specification's mounts
	Kind        Kind
	Source      string // of the volume, on the host: what the pod's containers have in common
	Sub         string // what of the volume is mounted, a relative path; "": all
	Destination string
	ReadOnly    bool // whatever the specification says; of a live share: what is shared is
}

// Input is what a plan needs to know.
type Input struct {
	ID     string // of the container
	Spec   *specs.Spec
	Mounts []*mountinfo.Info // the host's, from Look
	// HostPath is the configuration's choice; TEE says that the guest trusts nothing of the host.
	HostPath HostPath
	TEE      bool
	// Direct says whether a volume's path has a record of a CSI driver's (ReadDirect).
	Direct func(volume string) (bool, error)
}

// Annotations by which engines that speak CRI tell a container's sandbox.
var sandboxAnnotations = []string{"io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"}

func sandboxID(s *specs.Spec) string {
	for _, k := range sandboxAnnotations {
		if v := s.Annotations[k]; v != "" {
			return v
		}
	}
	return ""
}

// What kubelet has below pods/UID that it mounts into containers.
const (
	volumesDir    = "volumes"
	subPathsDir   = "volume-subpaths"
	containersDir = "containers"
	hostsFile     = "etc-hosts"

	plugins  = "kubernetes.io~"
	emptyDir = plugins + "empty-dir"
)

// atomic are the plugins whose volumes kubelet keeps up to date.
var atomic = []string{plugins + "configmap", plugins + "secret", plugins + "projected", plugins + "downward-api"}

// kubelets splits a path of kubelet's into the pod's directory and what is below it; nil for paths of
// others. Kubelet's root directory may be anywhere.
func kubelets(p string) (pod string, rest []string) {
	parts := strings.Split(p, "/")
	for i := range parts {
		if parts[i] != "pods" || i+2 >= len(parts) {
			continue
		}
		switch parts[i+2] {
		case volumesDir, subPathsDir, containersDir, hostsFile:
			return strings.Join(parts[:i+2], "/"), parts[i+2:]
		}
	}
	return "", nil
}

// engineFiles are mounted by every engine, from directories of its own.
var engineFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/run/.containerenv"}

const hugetlbfs = "hugetlbfs"

// Plan says what becomes of each bind mount of a specification. Mounts that are not bind mounts, and
// those of /dev/shm that the pod's own takes the place of, are not in it.
func Plan(in Input) ([]Bind, error) {
	var out []Bind
	for i, m := range in.Spec.Mounts {
		if !isBind(m) || !path.IsAbs(m.Source) {
			continue
		}
		b, err := in.one(m)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): %w", i, m.Destination, err)
		}
		b.Index, b.Destination = i, m.Destination
		out = append(out, b)
	}
	return out, nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func readOnly(m specs.Mount) bool {
	ro := false
	for _, o := range m.Options {
		switch o {
		case "ro", "rro":
			ro = true
		case "rw":
			ro = false
		}
	}
	return ro
}

func (in Input) one(m specs.Mount) (Bind, error) {
	src := path.Clean(m.Source)
	b := Bind{Source: src}
	pod, rest := kubelets(src)
	switch {
	case len(rest) >= 3 && rest[0] == volumesDir && rest[1] == emptyDir:
		return in.emptyDir(path.Join(pod, volumesDir, emptyDir, rest[2]), path.Join(rest[3:]...))
	case len(rest) >= 3 && rest[0] == volumesDir && slices.Contains(atomic, rest[1]):
		if len(rest) == 3 {
			b.Kind = Updated
		}
	case len(rest) == 4 && rest[0] == subPathsDir:
		return in.subPath(m, src, pod, rest[1])
	case len(rest) == 3 && rest[0] == containersDir:
		b.Kind = Termination
	case len(rest) == 1 && rest[0] == hostsFile:
	case len(rest) >= 3 && rest[0] == volumesDir:
		return in.persistent(m, src)
	case in.engines(m, src):
	case sandboxID(in.Spec) == "" && (in.TEE || in.HostPath != Live):
		// Engines for people (ctr, nerdctl, Docker, Podman) mount what somebody named on the
		// command line: a copy for that container.
	default:
		return in.hostPath(m, src)
	}
	return b, nil
}

// engines says whether a mount is the engine's own: the files that it makes for every container, and
// directories that belong to this container or its sandbox (volumes that an image declares).
func (in Input) engines(m specs.Mount, src string) bool {
	if slices.Contains(engineFiles, path.Clean(m.Destination)) {
		return true
	}
	parts := strings.Split(src, "/")
	return slices.Contains(parts, in.ID) || sandboxID(in.Spec) != "" && slices.Contains(parts, sandboxID(in.Spec))
}

// emptyDir is a volume of the guest's own. kubelet mounts what is to be memory.
func (in Input) emptyDir(src, sub string) (Bind, error) {
	b := Bind{Kind: Disk, Source: src, Sub: sub}
	switch at := mountOf(in.Mounts, src); {
	case at == nil || at.Mountpoint != src:
	case at.FSType == "tmpfs":
		b.Kind = Memory
	case at.FSType == hugetlbfs:
		return b, fmt.Errorf("the emptyDir %s is made of huge pages, which the VM has not; use medium Memory: %w", path.Base(src), errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// subPath finds the volume that a sub path belongs to. kubelet mounts sub paths to a directory of
// their own; only the mount table knows what is behind it.
func (in Input) subPath(m specs.Mount, src, pod, name string) (Bind, error) {
	volume := path.Join(pod, volumesDir, emptyDir, name)
	at := mountOf(in.Mounts, src)
	if at == nil || at.Mountpoint != src {
		return Bind{}, fmt.Errorf("the sub path %s is not mounted, so there is no telling which volume it belongs to: %w", src, errdefs.ErrFailedPrecondition)
	}
	if sub, ok := within(at, mountOf(in.Mounts, volume), volume); ok {
		return in.emptyDir(volume, sub)
	}
	for _, p := range atomic {
		v := path.Join(pod, volumesDir, p, name)
		if _, ok := within(at, mountOf(in.Mounts, v), v); ok {
			return Bind{Kind: Copied, Source: src}, nil // Kubernetes does not update a sub path either
		}
	}
	if in.inPlugin(at, pod, name) {
		return in.persistent(m, src)
	}
	return in.hostPath(m, src)
}

// inPlugin says whether a mount shows something below the pod's volumes directory.
func (in Input) inPlugin(at *mountinfo.Info, pod, name string) bool {
	for _, o := range in.Mounts {
		of, rest := kubelets(o.Mountpoint)
		if of != pod || len(rest) < 3 || rest[0] != volumesDir || rest[2] != name {
			continue
		}
		if _, ok := within(at, o, o.Mountpoint); ok {
			return true
		}
	}
	return false
}

// within returns the path of what is mounted at sub relative to dir, a directory in the mount at.
func within(sub, at *mountinfo.Info, dir string) (string, bool) {
	if sub == nil || at == nil || sub.Major != at.Major || sub.Minor != at.Minor {
		return "", false
	}
	base := path.Join(at.Root, strings.TrimPrefix(dir, at.Mountpoint))
	root := strings.TrimSuffix(sub.Root, "//deleted")
	if root == base {
		return "", true
	}
	rel, ok := strings.CutPrefix(root, strings.TrimSuffix(base, "/")+"/")
	return rel, ok
}

// mountOf returns the mount that a path is in. The last one of several at a place covers the others.
func mountOf(mounts []*mountinfo.Info, p string) *mountinfo.Info {
	var best *mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint != p && m.Mountpoint != "/" && !strings.HasPrefix(p, m.Mountpoint+"/") {
			continue
		}
		if best == nil || len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	return best
}

// persistent is a volume of a plugin that keeps data, mounted on the host. A copy of it that can be
// written to would lose what is written.
func (in Input) persistent(m specs.Mount, src string) (Bind, error) {
	if in.Direct != nil {
		if ok, err := in.Direct(src); ok || err != nil {
			return Bind{Kind: Direct, Source: src}, err
		}
	}
	if readOnly(m) || in.HostPath == Live {
		return in.hostPath(m, src)
	}
	return Bind{}, fmt.Errorf("the volume %s is mounted on the host, and a VM cannot write to a file system that the host has mounted: "+
		"give it to the pod as a raw block device (volumeDevices), let the CSI driver hand it over unmounted (direct volume), mount it read-only, or outside a TEE share it live (runtime.host_path): %w", src, errdefs.ErrInvalidArgument)
}

// hostPath is a file or directory of the host that has no owner among the pod's volumes.
func (in Input) hostPath(m specs.Mount, src string) (Bind, error) {
	switch {
	case in.TEE:
		return Bind{}, fmt.Errorf("the source %s is the host's, and a confidential guest takes no files of the host into a container: use a volume of the pod: %w", src, errdefs.ErrInvalidArgument)
	case in.HostPath == Refused:
		return Bind{}, fmt.Errorf("the source %s is the host's, which the configuration refuses (runtime.host_path): %w", src, errdefs.ErrInvalidArgument)
	}
	if in.HostPath == Live {
		return Bind{Kind: Shared, Source: src, ReadOnly: readOnly(m)}, nil
	}
	return Bind{Kind: Once, Source: src, ReadOnly: in.HostPath != Writable}, nil
}
