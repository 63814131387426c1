// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"path"
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/policy"
)

// disks are the drivers of disks, of which the host chooses one with the disk's address.
var disks = []string{contract.DriverBlk, contract.DriverSCSI, contract.DriverMMIOBlk}

// anySize stands in options for a size that the host chooses.
const anySize = "size=*"

// storage is a storage that the policy expects.
type storage struct {
	drivers []string
	source  string // "": an address of a disk
	fstype  string
	options []string
	driver  []string // options
	layer   string   // root hash, in place of driver
	at      string   // mount point
	shared  bool
	gid     uint32
	member  string // of the policy
}

// storages compares the storages of a container's request: those of its volumes in the order of its mounts, then those
// of its root file system.
func (d *diffs) storages(want []storage, got []*pb.Storage) {
	for i := range max(len(want), len(got)) {
		field := index("storages", i)
		switch {
		case i >= len(got):
			d.add(field, "a storage for "+quote(want[i].at), "none", want[i].member)
		case i >= len(want):
			d.add(field, "none", "a storage for "+quote(got[i].GetMountPoint()), "")
		default:
			d.storage(field, &want[i], got[i])
		}
	}
}

func (d *diffs) storage(field string, want *storage, got *pb.Storage) {
	if !slices.Contains(want.drivers, got.GetDriver()) {
		d.add(field+".driver", "one of "+quoteAll(want.drivers), quote(got.GetDriver()), "")
	}
	switch source := got.GetSource(); {
	case want.source != "":
		fixed(d, field+".source", want.source, source)
	case source == "" || len(source) > maxQuoted || strings.ContainsAny(source, " \t\n\x00"):
		d.add(field+".source", "the address of a disk", quote(source), "")
	}
	fixed(d, field+".fstype", want.fstype, got.GetFstype())
	options := slices.Clone(got.GetOptions())
	if i := slices.Index(want.options, anySize); i >= 0 && i < len(options) && isSize(options[i]) {
		options[i] = anySize
	}
	d.list(field+".options", want.member, want.options, options)
	if want.layer != "" {
		d.layer(field+".driver_options", want, got.GetDriverOptions())
	} else {
		d.list(field+".driver_options", "", want.driver, got.GetDriverOptions())
	}
	fixed(d, field+".mount_point", want.at, got.GetMountPoint())
	fixed(d, field+".shared", want.shared, got.GetShared())
	g := got.GetFsGroup()
	if (g != nil) != (want.gid != 0) || g.GetGroupId() != want.gid || g.GetGroupChangePolicy() != 0 {
		d.add(field+".fs_group", show(want.gid), show(g.GetGroupId()), "")
	}
}

func isSize(option string) bool {
	n, ok := strings.CutPrefix(option, "size=")
	n = strings.TrimRight(n, "km%")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// layer compares the parameters of a layer. Its root hash decides; with a wrong salt, size or place of the tree no
// block of the layer would be read.
func (d *diffs) layer(field string, want *storage, got []string) {
	names := []string{contract.VerityRootHash, contract.VeritySalt, contract.VerityDataBlocks, contract.VerityHashOffset}
	if len(got) != len(names) {
		d.add(field, "the options "+quoteAll(names), quoteAll(got), "")
		return
	}
	for i, o := range got {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case name != names[i]:
			d.add(index(field, i), quote(names[i]+"=…"), quote(o), "")
		case i == 0 && value != want.layer:
			d.add(index(field, i), quote(want.layer), quote(value), want.member+" = "+quote(value))
		case i > 0 && (len(value) > maxQuoted || strings.Trim(value, "0123456789abcdef") != ""):
			d.add(index(field, i), "a number or salt", quote(value), "")
		}
	}
}

// layers are the storages of an image's layers, and their mount points.
func layers(list []string, member string) (out []storage, points []string) {
	for i, l := range list {
		at := contract.LayersDir + "/" + l
		if slices.Contains(points, at) {
			continue // as package rootfs leaves it out
		}
		points = append(points, at)
		out = append(out, storage{
			drivers: disks, fstype: "erofs", options: []string{"ro"}, layer: l, at: at, member: index(member, i),
		})
	}
	return out, points
}

// rootStorages are the storages of a container's root file system. tmpfs: its writable layer is in the guest's memory,
// as the host chooses.
func rootStorages(c *policy.Container, cid string, tmpfs bool) []storage {
	out, lower := layers(c.Image.Layers, "image.layers")
	upper := contract.UpperDir + "/" + cid
	on := storage{
		drivers: disks, fstype: "ext4", options: []string{"mode=700"}, at: upper,
		driver: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
	}
	if tmpfs {
		on = storage{
			drivers: []string{contract.DriverEphemeral}, source: "tmpfs", fstype: "tmpfs",
			options: []string{anySize, "mode=0700"}, at: upper,
		}
	}
	return append(out, on, storage{
		drivers: []string{contract.DriverOverlay}, source: "none", fstype: "overlay", at: contract.Rootfs(cid),
		options: []string{"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper + "/fs", "workdir=" + upper + "/work"},
		driver: []string{
			contract.OptionCreateDirectory + upper + "/fs", contract.OptionCreateDirectory + upper + "/work",
		},
	})
}

// onTmpfs says whether a request has the writable layer in the guest's memory.
func onTmpfs(cid string, list []*pb.Storage) bool {
	return slices.ContainsFunc(list, func(s *pb.Storage) bool {
		return s.GetMountPoint() == contract.UpperDir+"/"+cid && s.GetDriver() == contract.DriverEphemeral
	})
}

// volumeDirs are the directories of the guest for volumes, by their kind.
var volumeDirs = map[string]string{
	policy.VolumeCopy: contract.FilesDir, policy.VolumeMemory: contract.MemoryDir, policy.VolumeDisk: contract.StorageDir,
	policy.VolumeHost: contract.StorageDir, policy.VolumeImage: contract.ImagesDir,
}

// copyPrefix begins the names of copies that are the pod's, not a container's.
const copyPrefix = contract.SandboxName + "-"

// bind takes a path of the guest for a volume. The volume keeps it, and no other one gets it.
func (d *diffs) bind(field string, v *policy.Volume, at string) {
	if known, ok := d.volumes[v.Name]; ok {
		fixed(d, field, known, at)
		return
	}
	dir, name := path.Split(at)
	if dir != volumeDirs[v.Kind]+"/" || name == "" || name == "." || name == ".." ||
		v.Kind == policy.VolumeCopy && !strings.HasPrefix(name, copyPrefix) {
		d.add(field, "a place for a volume below "+quote(volumeDirs[v.Kind]), quote(at), "")
		return
	}
	for other, taken := range d.volumes {
		if taken == at {
			d.add(field, "a place of its own", "that of volume "+quote(other), "")
			return
		}
	}
	d.volumes[v.Name] = at
}

// volume are the storages of a volume at its place.
func volume(v *policy.Volume, at string) []storage {
	member := "volumes[" + v.Name + "]"
	options := []string{"mode=" + v.Mode}
	if v.GID != 0 {
		options = append(options, "gid="+show(v.GID))
	}
	switch v.Kind {
	case policy.VolumeMemory:
		return []storage{{
			drivers: []string{contract.DriverEphemeral}, source: "tmpfs", fstype: "tmpfs", at: at, shared: true,
			options: append([]string{anySize}, options...), member: member,
		}}
	case policy.VolumeDisk:
		return []storage{{
			drivers: disks, fstype: "ext4", at: at, shared: true, options: options, member: member,
			driver: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		}}
	case policy.VolumeHost:
		return []storage{{drivers: disks, fstype: v.FSType, at: at, options: v.Options, gid: v.GID, member: member}}
	case policy.VolumeImage:
		out, lower := layers(v.Layers, member+".layers")
		if len(lower) == 1 {
			return append(out, storage{
				drivers: []string{contract.DriverBind}, source: lower[0], fstype: "bind", at: at, options: []string{"ro"},
			})
		}
		return append(out, storage{
			drivers: []string{contract.DriverOverlay}, source: "none", fstype: "overlay", at: at,
			options: []string{"ro", "lowerdir=" + strings.Join(lower, ":")},
		})
	}
	return nil // a copy has none
}

// subPath is where a sub path of a volume is mounted for a container.
func subPath(cid, destination string) string {
	return contract.SubPathsDir + "/" + cid + "-" + ident.Hash16(path.Clean(destination))
}
