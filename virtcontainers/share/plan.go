// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package share

import (
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/hostvolume"
)

// mounted is a container's view of a volume.
type mounted struct {
	*shared
	bind volume.Bind
}

// Request names a container whose bind mounts are planned.
type Request struct {
	ID, Bundle string
	Spec       *specs.Spec
}

// Mounts is the result of planning a container's bind mounts.
type Mounts struct {
	id      string
	Binds   map[int]request.Bound // for the conversion, by index of the mount
	volumes []mounted
	raw     map[string]*shared  // raw block devices, by path in the container
	sources map[int]volume.Bind // sources to copy for this container, by index of the mount
	made    []*made             // those of them that the engine makes for every container
	// The container's termination message: the file on the host, and its path in the container.
	Message     *os.File // nil: it has none
	MessagePath string
}

// Plan looks at a specification's bind mounts; it changes nothing.
func Plan(c configs.Config, req Request) ([]volume.Bind, error) {
	table, err := hostvolume.Look(req.Spec)
	if err != nil {
		return nil, err
	}
	binds, err := volume.Plan(volume.Input{
		ID: req.ID, Spec: req.Spec, Mounts: table,
		Kubelets: hostvolume.Roots(c.Runtime.KubeletDirs), Engines: hostvolume.EngineRoots(req.Bundle,
			c.Runtime.EngineDirs),
		HostPath: volume.HostPath(c.Runtime.HostPath), TEE: c.Hypervisor.Platform != "none",
		LiveBinds: c.LiveBinds(),
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

// Close closes the file of the termination message. It is idempotent.
func (m *Mounts) Close() error {
	if m.Message == nil {
		return nil
	}
	if err := m.Message.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Plan decides where each bind mount of a container leads to in the guest. The caller closes the result.
func (s *Set) Plan(req Request) (_ *Mounts, err error) {
	cfg := s.o.Config
	if s.o.Files == nil {
		cfg.Runtime.Binds = configs.BindsReadOnly // a pod that more containers were to join has no device for their volumes
	}
	binds, err := Plan(cfg, req)
	if err != nil {
		return nil, err
	}
	out := &Mounts{id: req.ID, Binds: map[int]request.Bound{}, sources: map[int]volume.Bind{}, raw: map[string]*shared{}}
	defer func() {
		if err != nil && out.Message != nil {
			err = errors.Join(err, out.Message.Close())
		}
	}()
	for _, b := range binds {
		switch b.Kind {
		case volume.Copied:
			out.sources[b.Index] = b
			continue
		case volume.Guest:
			out.Binds[b.Index] = request.Bound{Guest: b.Source}
			continue
		case volume.Termination:
			out.sources[b.Index] = b
			if err := out.openTerminationMessage(b); err != nil {
				return nil, err
			}
			continue
		}
		if b.Kind == volume.Direct && s.o.Alone == req.ID {
			return nil, fmt.Errorf("mount %s: a direct volume needs a pod whose containers are removed before it ends, as "+
				"CRI's are: %w", b.Destination, errdefs.ErrInvalidArgument)
		}
		m := mounted{s.get(b.Kind, b.Origin, volumeSource(b)), b}
		if m.kind != b.Kind {
			return nil, fmt.Errorf("mount %s: the volume %s is there as %s, and cannot be %s as well: %w", b.Destination,
				b.Source, m.kind, b.Kind, errdefs.ErrFailedPrecondition)
		}
		out.volumes = append(out.volumes, m)
		out.Binds[b.Index] = request.Bound{Guest: m.place(req.ID), ReadOnly: b.ReadOnly}
	}
	for _, d := range volume.Devices(req.Spec, request.Privileged(req.Spec), hostvolume.IsHosts) {
		v := s.get(volume.Raw, volume.Owned, d.String())
		out.raw[d.Path] = v
	}
	return out, nil
}

// openTerminationMessage opens the host's file for a termination message, once. The same descriptor is the source of
// the copy to the guest and the target when the container ends.
func (m *Mounts) openTerminationMessage(b volume.Bind) error {
	f, err := hostvolume.Open(b.Origin, b.Source)
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil && !st.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file: %w", b.Source, errdefs.ErrFailedPrecondition)
		}
	}
	if err == nil && m.Message != nil {
		err = fmt.Errorf("there are two termination messages: %w", errdefs.ErrInvalidArgument)
	}
	if err == nil {
		m.Message, m.MessagePath = f, b.Destination
		return nil
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return fmt.Errorf("mount %s: termination message: %w", b.Destination, err)
}

// place returns the source of the container's bind mount: the volume, or a mount of its own for a sub path.
func (m mounted) place(id string) string {
	if m.bind.Sub == "" {
		return m.guest
	}
	return contract.SubPathsDir + "/" + id + "-" + ident.Hash16(path.Clean(m.bind.Destination))
}
