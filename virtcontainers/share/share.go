// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package share brings the volumes of a pod's containers into its VM.
//
// Plan looks at the bind mounts of a specification and changes nothing. A Set has the volumes that a pod's containers
// share: each source on the host is one volume in the guest, made for the first container that mounts it, whatever its
// kind: a copy, one that follows kubelet's updates, guest memory, a disk, the layers of an image, or live files of the
// host. A source of one container alone is copied for it.
//
// Package plan/volume decides what kind a mount is, and package hostvolume opens what is on the host.
package share

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/internal/undo"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
	"github.com/coco-shim/coco/virtcontainers/layers"
)

// Guest takes the copies; *guest.Link implements it.
type Guest interface {
	Features() guest.Features
	CopyFile(context.Context, *agent.CopyFileRequest) (*emptypb.Empty, error)
	// Fault gives an agent's error its class.
	Fault(ctx context.Context, err error) error
}

// Disks gives block devices to the VM; *disk.Set implements it.
type Disks interface {
	Attach(ctx context.Context, list []*layer.Layer, u *undo.Stack) ([]rootfs.Attached, error)
	ForVolume(ctx context.Context, dir *os.File, source string, size uint64,
		u *undo.Stack) (hypervisor.BlockAddress, error)
	PlugVolume(ctx context.Context, source string, b hypervisor.Block) (hypervisor.BlockAddress, error)
}

// Files shows files of the host to the guest as they are.
type Files interface {
	// Share adds a file or directory of the host, an open one (O_PATH), under a name.
	Share(source *os.File, name string, readOnly bool) error
}

// Options are what the volumes of a pod are made with.
type Options struct {
	Pod       string // its name, for the log
	Log       *slog.Logger
	Config    configs.Config
	Alone     string // the container of a pod of one, else empty
	MemoryMiB uint64 // of the VM
	Guest     Guest
	Disks     Disks
	Layers    layers.Opener
	Files     Files       // nil: the VM has no device for live files
	Undo      *undo.Stack // of what goes with the VM
	// Spawn starts a goroutine that ends with the pod. It returns false when the pod has ended.
	Spawn func(func(context.Context)) bool
	// Ended reports whether the VM has ended, or is about to.
	Ended func() bool
}

// Set is the volumes that the containers of a pod share. Each host source is one volume in the guest: it is made for
// the first container that mounts it and ends with the VM.
type Set struct {
	o Options

	mu      sync.Mutex
	by      map[string]*shared  // guarded by mu; by source on the host
	watcher *hostvolume.Watcher // guarded by mu; made with the first volume that changes
}

// New makes the Set of a pod without containers.
func New(o Options) *Set { return &Set{o: o, by: map[string]*shared{}} }

// shared is a volume.
type shared struct {
	kind          volume.Kind
	origin        volume.Origin // of the source's name
	source, guest string

	mu      lock.Mutex       // guards the fields below
	made    bool             // it is in the guest
	storage *agent.Storage   // the agent's mount of it; nil for copies
	layers  []*agent.Storage // mounts that the agent makes before storage
	device  *agent.Device    // likewise, as the agent finds it
	mirror  *copytree.Mirror // of an updated copy: the state that the guest has
	id      hostfs.ID        // of an updated copy: the directory on the host
}

// hold waits for the volume and keeps it from others until free is called.
func (v *shared) hold(ctx context.Context) (free func(), err error) {
	if err := v.mu.Lock(ctx); err != nil {
		return nil, fmt.Errorf("wait for volume %s: %w", v.source, err)
	}
	return v.mu.Unlock, nil
}

const maxName = 255 // of a file

// guestPlace is where a volume is in the guest.
func guestPlace(kind volume.Kind, source string) string {
	base := path.Base(source)
	switch kind {
	case volume.Memory:
		return contract.MemoryDir + "/" + base
	case volume.Disk, volume.Direct:
		name := base64.URLEncoding.EncodeToString([]byte(source))
		if len(name) > maxName {
			name = ident.Hash16(source)
		}
		return contract.StorageDir + "/" + name
	case volume.Shared:
		return contract.LiveDir + "/" + ident.Hash16(source)
	case volume.Image:
		return contract.ImagesDir + "/" + ident.Hash16(source)
	default:
		name := "sandbox-" + ident.Hash16(source) + "-" + strings.ToValidUTF8(base, "_")
		return path.Join(contract.FilesDir, request.Shorten(name))
	}
}

// get returns the pod's volume of a source, noting a new one. Two sources of one name do not share a
// place.
func (s *Set) get(kind volume.Kind, origin volume.Origin, source string) *shared {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.by[source]; v != nil {
		return v
	}
	v := &shared{kind: kind, origin: origin, source: source, guest: guestPlace(kind, source), mu: lock.New()}
	for _, o := range s.by {
		if o.guest == v.guest {
			v.guest += "-" + ident.Hash16(source)
		}
	}
	s.by[source] = v
	return v
}

// find returns a volume by its source, if the pod has it.
func (s *Set) find(source string) *shared {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[source]
}

// sink sends the pieces of files to the guest.
type sink struct{ Guest }

// CopyFile implements copytree.Sink.
func (s sink) CopyFile(ctx context.Context, req *agent.CopyFileRequest) error {
	if _, err := s.Guest.CopyFile(ctx, req); err != nil {
		return s.Fault(ctx, err)
	}
	return nil
}

// target is a place in the guest for copies.
func (s *Set) target(guest string) copytree.Target {
	return copytree.Target{
		Sink: sink{s.o.Guest}, Guest: guest, LimitMiB: s.o.Config.Runtime.MaxCopyMiB,
		Removes: s.o.Guest.Features().Removes, RawNames: s.o.Guest.Features().RawNames,
	}
}

// Copy copies the sources of a container's bind mounts that it has for itself.
func (s *Set) Copy(ctx context.Context, copies []request.Copy, m *Mounts) error {
	for _, c := range copies {
		if err := s.copyIn(ctx, c, m); err != nil {
			return fmt.Errorf("mount %s: %w", c.Destination, err)
		}
	}
	return nil
}

// copyIn copies a bind mount's source to the guest for one container.
func (s *Set) copyIn(ctx context.Context, c request.Copy, m *Mounts) error {
	b, ok := m.sources[c.Index]
	if !ok {
		return fmt.Errorf("the source %s was not planned: %w", c.Source, errdefs.ErrInternal)
	}
	if b.Kind == volume.Termination {
		return copytree.Copy(ctx, m.Message, s.target(c.Guest))
	}
	f, err := hostvolume.Open(b.Origin, b.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	if b.Made {
		return m.add(b, c.Guest).sync(ctx, f, s)
	}
	return copytree.Copy(ctx, f, s.target(c.Guest))
}

// Provide brings a container's volumes into the guest and returns the storages that the agent has to mount.
func (s *Set) Provide(ctx context.Context, plan *Mounts) ([]*agent.Storage, error) {
	var out []*agent.Storage
	listed := map[string]bool{}
	for _, m := range plan.volumes {
		if err := s.makeVolume(ctx, m.shared, m.bind.Destination); err != nil {
			return nil, err
		}
		for _, st := range append(slices.Clone(m.layers), m.storage) {
			if st != nil && !listed[st.GetMountPoint()] {
				listed[st.GetMountPoint()] = true
				out = append(out, st)
			}
		}
		if m.bind.Sub != "" {
			out = append(out, subPathStorage(m.guest, m.bind.Sub, m.place(plan.id)))
		}
	}
	return out, nil
}

func subPathStorage(volume, sub, at string) *agent.Storage {
	return &agent.Storage{
		Driver: contract.DriverBind, Source: volume, Fstype: "bind", MountPoint: at,
		DriverOptions: []string{contract.OptionSubPath + sub},
	}
}

// makeVolume makes a volume, once; at is where a container has it, for errors.
func (s *Set) makeVolume(ctx context.Context, v *shared, at string) error {
	free, err := v.hold(ctx)
	if err != nil {
		return err
	}
	defer free()
	if v.made {
		return nil
	}
	switch v.kind {
	case volume.Disk:
		v.storage, err = s.diskVolume(ctx, v)
	case volume.Direct:
		v.storage, err = s.directVolume(ctx, v)
	case volume.Shared:
		v.storage, err = s.shareVolume(v)
	case volume.Image:
		err = s.imageVolume(ctx, v)
	case volume.Raw:
		v.device, err = s.rawVolume(ctx, v)
	default:
		err = s.fromSource(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	v.made = true
	return nil
}

// fromSource makes a volume of a kind that is made from the content of the host's directory.
func (s *Set) fromSource(ctx context.Context, v *shared) error {
	source, err := hostvolume.Open(v.origin, v.source)
	if err != nil {
		return err
	}
	defer source.Close()
	switch v.kind {
	case volume.Updated:
		return s.follow(ctx, v, source)
	case volume.Memory:
		v.storage, err = memoryVolume(v, source, s.o.MemoryMiB)
		return err
	default:
		return copytree.Copy(ctx, source, s.target(v.guest))
	}
}
