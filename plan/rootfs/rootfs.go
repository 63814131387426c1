// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rootfs plans how a container's root file system reaches the guest.
//
// Resolve turns the container engine's description (snapshot mounts, or a directory that the engine has
// mounted itself) into a Plan: the layers it consists of. Storages turns the layers, once they are
// built and plugged, into the agent's mounts. Both depend on nothing but their arguments. Package virtcontainers
// observes what they need of the host: the mounts at the root, and whether the upper directory is empty. Package
// image/layer builds layers, and the hypervisor plugs them.
package rootfs

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/coco-shim/coco/image/layer"
)

// Mount is a mount as a container engine describes it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

func (m Mount) String() string {
	return fmt.Sprintf("mount of type %q, source %q, options %q", m.Type, m.Source, m.Options)
}

// Request is everything that decides a root file system.
type Request struct {
	// Mounts are the snapshotter's; empty when the engine has mounted the root file system itself.
	Mounts []Mount
	// Root is the absolute path of the root file system on the host, for the latter case.
	Root string
	// HostMounts are the mounts at Root.
	HostMounts []*mountinfo.Info
	// ReadOnly is the OCI specification's root.readonly.
	ReadOnly bool
}

// Plan has the parts of a root file system.
type Plan struct {
	// Lower are the layers, the topmost first, as in overlay's lowerdir.
	Lower []layer.Source
	// Upper is the writable directory on top of them, or empty. It is fresh as a rule; otherwise
	// its content becomes one more layer. Nothing is ever written to it.
	Upper string
	// UserXattr says that the overlay keeps its marks in user.overlay.*.
	UserXattr bool
	// ReadOnly says that nobody may write to the root file system. It still gets an upper layer:
	// the container runtime makes mount points before it seals the root.
	ReadOnly bool
}

// Layers are the sources to build, the topmost first. upperEmpty says that Upper holds nothing.
func (p Plan) Layers(upperEmpty bool) []layer.Source {
	if p.Upper == "" || upperEmpty && len(p.Lower) > 0 {
		return p.Lower
	}
	top := layer.Source{Kind: layer.Dir, Path: p.Upper, Private: true, UserXattr: p.UserXattr}
	return append([]layer.Source{top}, p.Lower...)
}

// maxLayers bounds the depth of a root file system; overlayfs itself has a limit of 500.
const maxLayers = 400

// Resolve finds out which layers a root file system has.
func Resolve(req Request) (Plan, error) {
	var p Plan
	var err error
	if len(req.Mounts) > 0 {
		p, err = fromMounts(req.Mounts)
	} else {
		p, err = fromRoot(req)
	}
	if err != nil {
		return Plan{}, err
	}
	if len(p.Lower) > maxLayers {
		return Plan{}, fmt.Errorf("root file system has %d layers, more than %d: %w", len(p.Lower), maxLayers,
			errdefs.ErrInvalidArgument)
	}
	p.ReadOnly = p.ReadOnly || req.ReadOnly
	return p, nil
}

// fromRoot finds the overlay that Docker or Podman has mounted at Root. Anything else there is taken as
// the plain directory that it looks like.
func fromRoot(req Request) (Plan, error) {
	if !path.IsAbs(req.Root) {
		return Plan{}, fmt.Errorf("root file system: no mounts are given and root.path %q is not an absolute path: %w",
			req.Root, errdefs.ErrInvalidArgument)
	}
	root := path.Clean(req.Root)
	var top *mountinfo.Info
	for _, m := range req.HostMounts {
		if m.Mountpoint == root {
			top = m // the last one covers the others
		}
	}
	if top == nil || top.FSType != "overlay" || top.Root != "/" {
		return Plan{Upper: root}, nil
	}
	opts, err := hostOverlayOptions(top.VFSOptions)
	if err != nil {
		return Plan{}, fmt.Errorf("root file system %s: %w", root, err)
	}
	// Docker and Podman mount <home>/<id>/merged from within <home>, so that relative
	// directories ("l/ABC", "<id>/diff") start there.
	home := path.Dir(path.Dir(root))
	p, err := fromOverlay(opts, func(dir string) ([]layer.Source, error) {
		return []layer.Source{dirSource(absolute(home, dir))}, nil
	})
	if err != nil {
		return Plan{}, fmt.Errorf("overlay at %s with options %q: %w", root, top.VFSOptions, err)
	}
	if p.Upper != "" {
		p.Upper = absolute(home, p.Upper)
	}
	return p, nil
}

func absolute(base, dir string) string {
	if path.IsAbs(dir) {
		return path.Clean(dir)
	}
	return path.Join(base, dir)
}

func dirSource(path string) layer.Source { return layer.Source{Kind: layer.Dir, Path: path} }

// fromMounts follows the snapshotter's list of mounts. All but the last are only there to be
// referred to by the last one.
func fromMounts(mounts []Mount) (Plan, error) {
	before := make([]made, 0, len(mounts))
	for i, m := range mounts {
		last := i == len(mounts)-1
		r, err := one(m, before)
		if err != nil {
			return Plan{}, fmt.Errorf("root file system: %s: %w", m, err)
		}
		if last && r.scratch {
			return Plan{}, fmt.Errorf("root file system: %s: a device of its own is not supported as root: %w", m,
				errdefs.ErrNotImplemented)
		}
		if last {
			return r.plan, nil
		}
		before = append(before, r)
	}
	return Plan{}, fmt.Errorf("root file system: no mounts: %w", errdefs.ErrInvalidArgument)
}

// made is the result of an earlier mount of the list, for the later ones.
type made struct {
	plan Plan
	// scratch is a writable file system for upper and work directories. We have our own in the guest.
	scratch bool
}

// one interprets a single mount. The type may have prefixes that say how containerd prepares it.
func one(m Mount, before []made) (made, error) {
	kind := m.Type
	var transforms []string
	for {
		t, rest, ok := strings.Cut(kind, "/")
		if !ok {
			break
		}
		transforms, kind = append(transforms, t), rest
	}
	for _, t := range transforms {
		if t != "format" && t != "mkdir" && t != "mkfs" {
			return made{}, fmt.Errorf("unknown transformation %q: %w", t, errdefs.ErrNotImplemented)
		}
	}
	if m.Target != "" && m.Target != "/" {
		return made{}, fmt.Errorf("a mount at %q inside the root file system is not supported: %w", m.Target,
			errdefs.ErrNotImplemented)
	}
	switch kind {
	case "bind", "rbind":
		return bind(m, before)
	case "overlay":
		return overlay(m, before)
	case "erofs":
		return image(m)
	case "ext4", "xfs", "ext3", "ext2", "loop":
		if len(transforms) > 0 || strings.Contains(m.Source, "{{") {
			return made{scratch: true}, nil
		}
	}
	return made{}, fmt.Errorf("unknown type %q; supported are overlay, bind and erofs: %w", m.Type,
		errdefs.ErrNotImplemented)
}

// bind is a snapshot in one directory. A writable one belongs to its container alone.
func bind(m Mount, before []made) (made, error) {
	readOnly := false
	for _, o := range m.Options {
		switch o {
		case "ro":
			readOnly = true
		case "rw", "bind", "rbind", "private", "rprivate", "nosuid", "nodev", "noexec":
		default:
			if !ignorable(o) {
				return made{}, unknownOption(o)
			}
		}
	}
	if n, ok, err := reference(m.Source, before); err != nil {
		return made{}, err
	} else if ok {
		p := before[n].plan
		p.ReadOnly = p.ReadOnly || readOnly
		return made{plan: p, scratch: before[n].scratch}, nil
	}
	if !path.IsAbs(m.Source) {
		return made{}, fmt.Errorf("source is not an absolute path: %w", errdefs.ErrInvalidArgument)
	}
	if readOnly {
		return made{plan: Plan{Lower: []layer.Source{dirSource(path.Clean(m.Source))}, ReadOnly: true}}, nil
	}
	return made{plan: Plan{Upper: path.Clean(m.Source)}}, nil
}

// image is a layer that already is an EROFS image.
func image(m Mount) (made, error) {
	for _, o := range m.Options {
		if strings.HasPrefix(o, "device=") {
			return made{}, fmt.Errorf("an image whose data is in other files (%q) is not supported; set max_unmerged_layers = "+
				"0 for containerd's erofs snapshotter: %w", o, errdefs.ErrNotImplemented)
		}
		if o != "ro" && o != "loop" && !ignorable(o) && !strings.HasPrefix(o, "X-containerd.dmverity=") {
			return made{}, unknownOption(o)
		}
	}
	if !path.IsAbs(m.Source) {
		return made{}, fmt.Errorf("source is not an absolute path: %w", errdefs.ErrInvalidArgument)
	}
	src := layer.Source{Kind: layer.Image, Path: path.Clean(m.Source)}
	return made{plan: Plan{Lower: []layer.Source{src}, ReadOnly: true}}, nil
}

func unknownOption(o string) error {
	return fmt.Errorf("unknown option %q: %w", o, errdefs.ErrNotImplemented)
}

// ignorable options do not change what one sees below the mount.
func ignorable(o string) bool {
	switch o {
	case "relatime", "noatime", "nodiratime", "strictatime", "seclabel", "lazytime", "async":
		return true
	}
	return strings.HasPrefix(o, "X-containerd.mkdir.") || strings.HasPrefix(o, "context=")
}
