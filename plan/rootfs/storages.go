// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
)

// Upper is the storage of a container's writable layer: a new disk that the guest encrypts with a key of its
// own, or, without one, a tmpfs of MiB.
type Upper struct {
	Disk *hypervisor.BlockAddress
	MiB  uint64
}

// storage mounts it at a place of the guest.
func (u Upper) storage(at string) *agent.Storage {
	if u.Disk == nil {
		return &agent.Storage{
			Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: at,
			Options: []string{fmt.Sprintf("size=%dm", u.MiB), "mode=0700"},
		}
	}
	return &agent.Storage{
		Driver: u.Disk.Driver, Source: u.Disk.Source, Fstype: "ext4", MountPoint: at,
		Options: []string{"mode=700"}, DriverOptions: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
	}
}

// Attached is a layer that the guest can see.
type Attached struct {
	layer.Params
	Address hypervisor.BlockAddress
}

// Storages lists what the agent mounts for a container's root file system, in order: each layer,
// what the writable layer lies on, the overlay of all of them. layers has the topmost first; the same
// layer twice is mounted once.
func Storages(cid string, layers []Attached, on Upper) ([]*agent.Storage, error) {
	if err := checkID(cid); err != nil {
		return nil, err
	}
	if len(layers) == 0 {
		return nil, fmt.Errorf("container %s: root file system without layers", cid)
	}
	var out []*agent.Storage
	var lower []string
	seen := map[string]bool{}
	for _, l := range layers {
		point := contract.LayersDir + "/" + l.Hex()
		if seen[point] {
			// An overlay refuses one directory twice. Only the upper of two equal layers matters:
			// what it does to the layers in between, it does again.
			continue
		}
		seen[point] = true
		lower = append(lower, point)
		out = append(out, l.storage(point))
	}
	return writable(cid, out, lower, on)
}

// Pulled lists likewise what the agent mounts where the guest pulls the image: source is its repository with the digest
// of its manifest, which is the only thing of an image that the host names then.
func Pulled(cid, source string, on Upper) ([]*agent.Storage, error) {
	if err := checkID(cid); err != nil {
		return nil, err
	}
	_, manifest, ok := strings.Cut(source, "@")
	if !ok {
		return nil, fmt.Errorf("container %s: image %.200q has no digest", cid, source)
	}
	at := contract.Pulled(manifest)
	return writable(cid, []*agent.Storage{{
		Driver: contract.DriverPull, Source: source, Fstype: "overlay", Options: []string{"ro"}, MountPoint: at,
		Shared: true, // a container that is created again finds it
	}}, []string{at}, on)
}

// writable adds the writable layer and the overlay of all.
func writable(cid string, out []*agent.Storage, lower []string, on Upper) ([]*agent.Storage, error) {
	if on.Disk == nil && on.MiB == 0 {
		return nil, fmt.Errorf("container %s: size of the writable layer is zero", cid)
	}
	upper := contract.UpperDir + "/" + cid
	out = append(out, on.storage(upper), &agent.Storage{
		Driver: contract.DriverOverlay, Source: "none", Fstype: "overlay", MountPoint: contract.Rootfs(cid),
		Options: []string{
			"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper + "/fs", "workdir=" + upper + "/work",
		},
		DriverOptions: []string{
			contract.OptionCreateDirectory + upper + "/fs",
			contract.OptionCreateDirectory + upper + "/work",
		},
	})
	return out, nil
}

// Image lists what the agent mounts for an image that is a volume, read-only, at a place of its own.
func Image(at string, layers []Attached) []*agent.Storage {
	var out []*agent.Storage
	var lower []string
	for _, l := range layers {
		point := contract.LayersDir + "/" + l.Hex()
		if slices.Contains(lower, point) { // as in Storages
			continue
		}
		lower = append(lower, point)
		out = append(out, l.storage(point))
	}
	if len(lower) == 1 { // an overlay without an upper directory has two at least
		return append(out, &agent.Storage{
			Driver: contract.DriverBind, Source: lower[0], Fstype: "bind", MountPoint: at, Options: []string{"ro"},
		})
	}
	return append(out, &agent.Storage{
		Driver: contract.DriverOverlay, Source: "none", Fstype: "overlay", MountPoint: at,
		Options: []string{"ro", "lowerdir=" + strings.Join(lower, ":")},
	})
}

// storage is a layer as the agent mounts it.
func (l Attached) storage(point string) *agent.Storage {
	return &agent.Storage{
		Driver: l.Address.Driver, Source: l.Address.Source, Fstype: "erofs",
		Options: []string{"ro"}, DriverOptions: l.Options(), MountPoint: point,
	}
}

// checkID refuses what could lead out of the guest's directories.
func checkID(cid string) error {
	if cid == "" || strings.ContainsAny(cid, "/,:\\\x00") || cid == "." || cid == ".." {
		return errors.New("container id " + fmt.Sprintf("%.80q", cid) + " cannot be part of a path")
	}
	return nil
}
