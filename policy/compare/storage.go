// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

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

// Storage is a storage that the policy expects.
type Storage struct {
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

// Storages compares the storages of a container's request: those of its volumes in the order of its mounts, then those
// of its root file system.
func (d *Diffs) Storages(want []Storage, got []*pb.Storage) {
	for i := range max(len(want), len(got)) {
		field := Index("storages", i)
		switch {
		case i >= len(got):
			d.Add(field, "a storage for "+Quote(want[i].at), "none", want[i].member)
		case i >= len(want):
			d.Add(field, "none", "a storage for "+Quote(got[i].GetMountPoint()), "")
		default:
			d.storage(field, &want[i], got[i])
		}
	}
}

func (d *Diffs) storage(field string, want *Storage, got *pb.Storage) {
	if !slices.Contains(want.drivers, got.GetDriver()) {
		d.Add(field+".driver", "one of "+QuoteAll(want.drivers), Quote(got.GetDriver()), "")
	}
	switch source := got.GetSource(); {
	case want.source != "":
		Fixed(d, field+".source", want.source, source)
	case source == "" || len(source) > maxQuoted || strings.ContainsAny(source, " \t\n\x00"):
		d.Add(field+".source", "the address of a disk", Quote(source), "")
	}
	Fixed(d, field+".fstype", want.fstype, got.GetFstype())
	options := slices.Clone(got.GetOptions())
	if i := slices.Index(want.options, anySize); i >= 0 && i < len(options) && isSize(options[i]) {
		options[i] = anySize
	}
	d.List(field+".options", want.member, want.options, options)
	if want.layer != "" {
		d.layer(field+".driver_options", want, got.GetDriverOptions())
	} else {
		d.List(field+".driver_options", "", want.driver, got.GetDriverOptions())
	}
	Fixed(d, field+".mount_point", want.at, got.GetMountPoint())
	Fixed(d, field+".shared", want.shared, got.GetShared())
	g := got.GetFsGroup()
	if (g != nil) != (want.gid != 0) || g.GetGroupId() != want.gid || g.GetGroupChangePolicy() != 0 {
		d.Add(field+".fs_group", Show(want.gid), Show(g.GetGroupId()), "")
	}
}

func isSize(option string) bool {
	n, ok := strings.CutPrefix(option, "size=")
	n = strings.TrimRight(n, "km%")
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// layer compares the parameters of a layer. Its root hash decides; with a wrong salt, size or place of the tree no
// block of the layer would be read.
func (d *Diffs) layer(field string, want *Storage, got []string) {
	names := []string{contract.VerityRootHash, contract.VeritySalt, contract.VerityDataBlocks, contract.VerityHashOffset}
	if len(got) != len(names) {
		d.Add(field, "the options "+QuoteAll(names), QuoteAll(got), "")
		return
	}
	for i, o := range got {
		name, value, _ := strings.Cut(o, "=")
		switch {
		case name != names[i]:
			d.Add(Index(field, i), Quote(names[i]+"=…"), Quote(o), "")
		case i == 0 && value != want.layer:
			d.Add(Index(field, i), Quote(want.layer), Quote(value), want.member+" = "+Quote(value))
		case i > 0 && (len(value) > maxQuoted || strings.Trim(value, "0123456789abcdef") != ""):
			d.Add(Index(field, i), "a number or salt", Quote(value), "")
		}
	}
}

// layers are the storages of an image's layers, and their mount points.
func layers(list []string, member string) (out []Storage, points []string) {
	for i, l := range list {
		at := contract.LayersDir + "/" + l
		if slices.Contains(points, at) {
			continue // as package rootfs leaves it out
		}
		points = append(points, at)
		out = append(out, Storage{
			drivers: disks, fstype: "erofs", options: []string{"ro"}, layer: l, at: at, member: Index(member, i),
		})
	}
	return out, points
}

// rootStorages are the storages of a container's root file system. tmpfs: its writable layer is in the guest's memory,
// as the host chooses.
func rootStorages(c *policy.Container, cid string, tmpfs bool) []Storage {
	out, lower := layers(c.Image.Layers, "image.layers")
	if source := c.Image.Source(); source != "" {
		lower = []string{contract.Pulled(c.Image.Manifest)}
		out = []Storage{{
			drivers: []string{contract.DriverPull}, source: source, fstype: "overlay", options: []string{"ro"}, at: lower[0],
			shared: true, member: "image.pull",
		}}
	}
	upper := contract.UpperDir + "/" + cid
	on := Storage{
		drivers: disks, fstype: "ext4", options: []string{"mode=700"}, at: upper,
		driver: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
	}
	if tmpfs {
		on = Storage{
			drivers: []string{contract.DriverEphemeral}, source: "tmpfs", fstype: "tmpfs",
			options: []string{anySize, "mode=0700"}, at: upper,
		}
	}
	return append(out, on, Storage{
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

// CopyPrefix begins the names of copies that are the pod's, not a container's.
const CopyPrefix = contract.SandboxName + "-"

// Bind takes a path of the guest for a volume. The volume keeps it, and no other one gets it.
func (d *Diffs) Bind(field string, v *policy.Volume, at string) {
	if known, ok := d.Volumes[v.Name]; ok {
		Fixed(d, field, known, at)
		return
	}
	dir, name := path.Split(at)
	if dir != volumeDirs[v.Kind]+"/" || name == "" || name == "." || name == ".." ||
		v.Kind == policy.VolumeCopy && !strings.HasPrefix(name, CopyPrefix) {
		d.Add(field, "a place for a volume below "+Quote(volumeDirs[v.Kind]), Quote(at), "")
		return
	}
	for other, taken := range d.Volumes {
		if taken == at {
			d.Add(field, "a place of its own", "that of volume "+Quote(other), "")
			return
		}
	}
	d.Volumes[v.Name] = at
}

// volume are the storages of a volume at its place.
func volume(v *policy.Volume, at string) []Storage {
	member := "volumes[" + v.Name + "]"
	options := []string{"mode=" + v.Mode}
	if v.GID != 0 {
		options = append(options, "gid="+Show(v.GID))
	}
	switch v.Kind {
	case policy.VolumeMemory:
		return []Storage{{
			drivers: []string{contract.DriverEphemeral}, source: "tmpfs", fstype: "tmpfs", at: at, shared: true,
			options: append([]string{anySize}, options...), member: member,
		}}
	case policy.VolumeDisk:
		return []Storage{{
			drivers: disks, fstype: "ext4", at: at, shared: true, options: options, member: member,
			driver: []string{contract.OptionEphemeralKey, contract.OptionCreateFS},
		}}
	case policy.VolumeHost:
		return []Storage{{drivers: disks, fstype: v.FSType, at: at, options: v.Options, gid: v.GID, member: member}}
	case policy.VolumeImage:
		out, lower := layers(v.Layers, member+".layers")
		if len(lower) == 1 {
			return append(out, Storage{
				drivers: []string{contract.DriverBind}, source: lower[0], fstype: "bind", at: at, options: []string{"ro"},
			})
		}
		return append(out, Storage{
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
