// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/internal/lock"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// volumes are the volumes that the containers of a pod share. Each host source is one volume in the guest: it is made
// for the first container that mounts it and ends with the VM.
type volumes struct {
	memoryMiB uint64 // of the VM; set before there are containers

	mu      sync.Mutex
	by      map[string]*podVolume // guarded by mu; by source on the host
	watcher *hostvolume.Watcher   // guarded by mu; made with the first volume that changes
}

// podVolume is one of them.
type podVolume struct {
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
func (v *podVolume) hold(ctx context.Context) (free func(), err error) {
	if err := v.mu.Lock(ctx); err != nil {
		return nil, fmt.Errorf("wait for volume %s: %w", v.source, err)
	}
	return v.mu.Unlock, nil
}

// mounted is a container's view of a volume.
type mounted struct {
	*podVolume
	bind volume.Bind
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
func (vs *volumes) get(kind volume.Kind, origin volume.Origin, source string) *podVolume {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.by[source]; v != nil {
		return v
	}
	v := &podVolume{kind: kind, origin: origin, source: source, guest: guestPlace(kind, source), mu: lock.New()}
	for _, o := range vs.by {
		if o.guest == v.guest {
			v.guest += "-" + ident.Hash16(source)
		}
	}
	vs.by[source] = v
	return v
}

// find returns a volume by its source, if the pod has it.
func (vs *volumes) find(source string) *podVolume {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.by[source]
}

// mountPlan is the result of planning a container's bind mounts.
type mountPlan struct {
	binds   map[int]request.Bound // for the conversion, by index of the mount
	volumes []mounted
	raw     map[string]*podVolume // raw block devices, by path in the container
	sources map[int]volume.Bind   // sources to copy for this container, by index of the mount
	// The container's termination message: the file on the host, and its path in the container.
	terminationMessage     *os.File
	terminationMessagePath string
}

// planBinds looks at a specification's bind mounts; it changes nothing.
func planBinds(o Options, req ContainerRequest) ([]volume.Bind, error) {
	table, err := hostvolume.Look(req.Spec)
	if err != nil {
		return nil, err
	}
	binds, err := volume.Plan(volume.Input{
		ID: req.ID, Spec: req.Spec, Mounts: table,
		Kubelets: hostvolume.Roots(o.Config.Runtime.KubeletDirs), Engines: hostvolume.EngineRoots(req.Bundle,
			o.Config.Runtime.EngineDirs),
		HostPath: volume.HostPath(o.Config.Runtime.HostPath), TEE: o.Config.Hypervisor.Platform != "none",
		Direct: func(v string) (bool, error) {
			d, err := hostvolume.ReadDirect(hostvolume.DirectDir, v)
			return d != nil, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("container %s cannot run in a VM as specified: %w", req.ID, err)
	}
	return binds, nil
}

// planMounts decides where each bind mount of a container leads to in the guest.
func (p *Pod) planMounts(req ContainerRequest) (out mountPlan, err error) {
	id, s := req.ID, req.Spec
	binds, err := planBinds(p.opts, req)
	if err != nil {
		return mountPlan{}, err
	}
	out = mountPlan{binds: map[int]request.Bound{}, sources: map[int]volume.Bind{}, raw: map[string]*podVolume{}}
	defer func() {
		if err != nil && out.terminationMessage != nil {
			err = errors.Join(err, out.terminationMessage.Close())
		}
	}()
	for _, b := range binds {
		switch b.Kind {
		case volume.Copied:
			out.sources[b.Index] = b
			continue
		case volume.Guest:
			out.binds[b.Index] = request.Bound{Guest: b.Source}
			continue
		case volume.Termination:
			out.sources[b.Index] = b
			if err := out.openTerminationMessage(b); err != nil {
				return out, err
			}
			continue
		}
		if b.Kind == volume.Direct && p.isFirst(id) {
			return out, fmt.Errorf("mount %s: a direct volume needs a pod whose containers are removed before it ends, as "+
				"CRI's are: %w", b.Destination, errdefs.ErrInvalidArgument)
		}
		m := mounted{p.volumes.get(b.Kind, b.Origin, volumeSource(b)), b}
		if m.kind != b.Kind {
			return out, fmt.Errorf("mount %s: the volume %s is there as %s, and cannot be %s as well: %w", b.Destination,
				b.Source, m.kind, b.Kind, errdefs.ErrFailedPrecondition)
		}
		out.volumes = append(out.volumes, m)
		out.binds[b.Index] = request.Bound{Guest: m.place(id), ReadOnly: b.ReadOnly}
	}
	for _, d := range volume.Devices(s, request.Privileged(s), hostvolume.IsHosts) {
		v := p.volumes.get(volume.Raw, volume.Owned, d.String())
		out.raw[d.Path] = v
	}
	return out, nil
}

// openTerminationMessage opens the host's file for a termination message, once. The same descriptor is the source of
// the copy to the guest and the target when the container ends.
func (m *mountPlan) openTerminationMessage(b volume.Bind) error {
	f, err := hostvolume.Open(b.Origin, b.Source)
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file: %w", b.Source, errdefs.ErrFailedPrecondition)
		}
	}
	if err == nil && m.terminationMessage != nil {
		err = fmt.Errorf("there are two termination messages: %w", errdefs.ErrInvalidArgument)
	}
	if err == nil {
		m.terminationMessage, m.terminationMessagePath = f, b.Destination
		return nil
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return fmt.Errorf("mount %s: termination message: %w", b.Destination, err)
}

// target is a place in the guest for copies.
func (p *Pod) target(guest string) copytree.Target {
	return copytree.Target{
		Sink: sinkFunc(p.copyFile), Guest: guest, LimitMiB: p.opts.Config.Runtime.MaxCopyMiB,
		Removes: p.agent.Features().Removes, RawNames: p.agent.Features().RawNames,
	}
}

// copyIn copies a bind mount's source to the guest for one container.
func (p *Pod) copyIn(ctx context.Context, c request.Copy, m mountPlan) error {
	b, ok := m.sources[c.Index]
	if !ok {
		return fmt.Errorf("the source %s was not planned: %w", c.Source, errdefs.ErrInternal)
	}
	if b.Kind == volume.Termination {
		return copytree.Copy(ctx, m.terminationMessage, p.target(c.Guest))
	}
	f, err := hostvolume.Open(b.Origin, b.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	return copytree.Copy(ctx, f, p.target(c.Guest))
}

// place returns the source of the container's bind mount: the volume, or a mount of its own for a sub path.
func (m mounted) place(id string) string {
	if m.bind.Sub == "" {
		return m.guest
	}
	return contract.SubPathsDir + "/" + id + "-" + ident.Hash16(path.Clean(m.bind.Destination))
}

// provide brings a container's volumes into the guest and returns the storages that the agent has to mount.
func (p *Pod) provide(ctx context.Context, id string, list []mounted) ([]*agent.Storage, error) {
	var out []*agent.Storage
	listed := map[string]bool{}
	for _, m := range list {
		if err := p.makeVolume(ctx, m.podVolume, m.bind.Destination); err != nil {
			return nil, err
		}
		for _, s := range append(slices.Clone(m.layers), m.storage) {
			if s != nil && !listed[s.GetMountPoint()] {
				listed[s.GetMountPoint()] = true
				out = append(out, s)
			}
		}
		if m.bind.Sub != "" {
			out = append(out, subPathStorage(m.guest, m.bind.Sub, m.place(id)))
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
func (p *Pod) makeVolume(ctx context.Context, v *podVolume, at string) error {
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
		v.storage, err = p.diskVolume(ctx, v)
	case volume.Direct:
		v.storage, err = p.directVolume(ctx, v)
	case volume.Shared:
		v.storage, err = p.shareVolume(v)
	case volume.Image:
		err = p.imageVolume(ctx, v)
	case volume.Raw:
		v.device, err = p.rawVolume(ctx, v)
	default:
		err = p.fromSource(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	v.made = true
	return nil
}

// fromSource makes a volume of a kind that is made from the content of the host's directory.
func (p *Pod) fromSource(ctx context.Context, v *podVolume) error {
	source, err := hostvolume.Open(v.origin, v.source)
	if err != nil {
		return err
	}
	defer source.Close()
	switch v.kind {
	case volume.Updated:
		return p.follow(ctx, v, source)
	case volume.Memory:
		v.storage, err = memoryVolume(v, source, p.volumes.memoryMiB)
		return err
	default:
		return copytree.Copy(ctx, source, p.target(v.guest))
	}
}

// memoryVolume is a tmpfs as kubelet has made one on the host: its size limit, mode and group. One
// that could hold more than the guest's memory is bounded by half of that, as Linux does by default.
func memoryVolume(v *podVolume, source *os.File, memoryMiB uint64) (*agent.Storage, error) {
	s, err := hostvolume.ShapeOf(source)
	if err != nil {
		return nil, err
	}
	size := "size=50%"
	if s.Bytes > 0 && s.Bytes < memoryMiB*mib {
		size = fmt.Sprintf("size=%d", s.Bytes)
	}
	return ephemeral(v.guest, size, s), nil
}

// ephemeral is guest memory of a volume's shape, for the life of the sandbox.
func ephemeral(at, size string, s hostvolume.Shape) *agent.Storage {
	opts := []string{size, fmt.Sprintf("mode=%o", s.Mode)}
	if s.Group != 0 {
		opts = append(opts, fmt.Sprintf("gid=%d", s.Group))
	}
	return &agent.Storage{
		Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", Options: opts, MountPoint: at, Shared: true,
	}
}
