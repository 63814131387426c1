// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"strings"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

func TestMountsInTheirOrder(t *testing.T) {
	mount := func(at string) policy.Mount {
		return policy.Mount{Destination: at, Type: "proc", Source: policy.Source{Is: new("proc")}}
	}
	optional := func(at string) policy.Mount { m := mount(at); m.Optional = true; return m }
	for name, tc := range map[string]struct {
		want []policy.Mount
		got  []string
		said string
	}{
		"all":                  {[]policy.Mount{mount("/a"), mount("/b")}, []string{"/a", "/b"}, ""},
		"without the optional": {[]policy.Mount{optional("/a"), mount("/b"), optional("/c")}, []string{"/b"}, ""},
		"with the optional":    {[]policy.Mount{optional("/a"), mount("/b")}, []string{"/a", "/b"}, ""},
		"another one": {
			[]policy.Mount{mount("/a")},
			[]string{"/x", "/a"},
			`OCI.Mounts[0]: expected no mount on "/x", got one; allow with: c.mounts with an entry for it`,
		},
		"another one at the end": {
			[]policy.Mount{mount("/a")},
			[]string{"/a", "/x"},
			`OCI.Mounts[1]: expected no mount on "/x", got one; allow with: c.mounts with an entry for it`,
		},
		"one missing": {
			[]policy.Mount{mount("/a"), mount("/b")},
			[]string{"/b"},
			`OCI.Mounts: expected a mount on "/a" at this place, got none; allow with: c.mounts[0].optional = true`,
		},
		"the last one missing": {
			[]policy.Mount{mount("/a"), mount("/b")},
			[]string{"/a"},
			`OCI.Mounts: expected a mount on "/b" at this place, got none; allow with: c.mounts[1].optional = true`,
		},
	} {
		a, d := ask(), newDiffs()
		a.c.Mounts = tc.want
		for _, at := range tc.got {
			a.req.OCI.Mounts = append(a.req.OCI.Mounts, &pb.Mount{Destination: at, Type: "proc", Source: "proc"})
		}
		d.Container(a.p, a.c, a.req, a.box)
		if n := min(1, len(tc.said)); said(d) != tc.said || d.N != n {
			t.Errorf("%s: %d differences\nsaid %s\nwant %s", name, d.N, said(d), tc.said)
		}
	}
}

func TestEachKindOfVolume(t *testing.T) {
	const at = contract.StorageDir + "/v"
	host := policy.Volume{Name: "v", Kind: policy.VolumeHost, FSType: "ext4", Options: []string{"ro"}}
	disk := func(change func(*pb.Storage)) func(asked) {
		return func(a asked) {
			s := &pb.Storage{Driver: contract.DriverSCSI, Source: "0:1", Fstype: "ext4", MountPoint: at, Options: []string{"ro"}}
			change(s)
			a.volume(host, at, s)
		}
	}
	source := func(s string) func(asked) { return disk(func(d *pb.Storage) { d.Source = s }) }
	const noDisk = `storages[0].source: expected the address of a disk, got `
	for _, c := range []change{
		{"a disk of the host", source("0:1"), ""},
		{"no address", source(""), noDisk + `""`},
		{"an address with a blank", source("0 1"), noDisk + `"0 1"`},
		{"an address of 120 bytes", source(strings.Repeat("1", 120)), ""},
		{
			"a long address", source(strings.Repeat("1", 121)),
			noDisk + `"` + strings.Repeat("1", 120) + `"… of 121 bytes`,
		},
		{
			"a group", disk(func(s *pb.Storage) { s.FsGroup = &pb.FSGroup{GroupId: 7} }),
			`storages[0].fs_group: expected 0, got 7`,
		},
		{"the group of nobody", disk(func(s *pb.Storage) { s.FsGroup = &pb.FSGroup{} }), `storages[0].fs_group: expected 0, got 0`},
		{"memory", func(a asked) {
			a.volume(policy.Volume{Name: "v", Kind: policy.VolumeMemory, Mode: "700"}, contract.MemoryDir+"/v", &pb.Storage{
				Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: contract.MemoryDir + "/v",
				Options: []string{"size=9k", "mode=700"}, Shared: true,
			})
		}, ""},
		{
			"another overlay", func(a asked) { a.req.Storages[1].Source = "x" },
			`storages[1].source: expected "none", got "x"`,
		},
		{"a size without its name", func(a asked) {
			a.volume(policy.Volume{Name: "v", Kind: policy.VolumeMemory, Mode: "700"}, contract.MemoryDir+"/v", &pb.Storage{
				Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: contract.MemoryDir + "/v",
				Options: []string{"9k", "mode=700"}, Shared: true,
			})
		}, `storages[0].options[0]: expected "size=*", got "9k"; allow with: c.volumes[v] = ["9k","mode=700"]`},
		{"memory without a size", func(a asked) {
			a.volume(policy.Volume{Name: "v", Kind: policy.VolumeMemory, Mode: "700"}, contract.MemoryDir+"/v", &pb.Storage{
				Driver: contract.DriverEphemeral, Source: "tmpfs", Fstype: "tmpfs", MountPoint: contract.MemoryDir + "/v",
				Options: []string{"size=k", "mode=700"}, Shared: true,
			})
		}, `storages[0].options[0]: expected "size=*", got "size=k"; allow with: c.volumes[v] = ["size=k","mode=700"]`},
	} {
		c.test(t)
	}
	grouped := host
	grouped.GID = 7
	for what, tc := range map[string]struct {
		group *pb.FSGroup
		same  bool
	}{
		"the group":      {&pb.FSGroup{GroupId: 7}, true},
		"another group":  {&pb.FSGroup{GroupId: 8}, false},
		"no group":       {nil, false},
		"another policy": {&pb.FSGroup{GroupId: 7, GroupChangePolicy: 1}, false},
	} {
		a, d := ask(), newDiffs()
		a.volume(grouped, at, &pb.Storage{
			Driver: contract.DriverSCSI, Source: "0:1", Fstype: "ext4", MountPoint: at, Options: []string{"ro"},
			FsGroup: tc.group,
		})
		d.Container(a.p, a.c, a.req, a.box)
		if (d.N == 0) != tc.same {
			t.Errorf("%s: %s", what, said(d))
		}
	}
}

// TestPlacesOfVolumes: which paths of the guest a volume may have.
func TestPlacesOfVolumes(t *testing.T) {
	const dir = contract.FilesDir + "/"
	for at, want := range map[string]bool{
		dir + CopyPrefix + "v": true, dir + "v": false, dir: false, dir + ".": false, dir + "..": false,
		contract.FilesDir:        false,
		dir + CopyPrefix + "v/w": false, contract.MemoryDir + "/" + CopyPrefix + "v": false,
	} {
		d := newDiffs()
		if d.Bind("f", &policy.Volume{Name: "v", Kind: policy.VolumeCopy}, at); (d.N == 0) != want {
			t.Errorf("%s: %s", at, said(d))
		}
	}
	for at, want := range map[string]bool{
		contract.MemoryDir + "/v": true, contract.MemoryDir + "/": false, contract.MemoryDir + "/.": false,
		contract.MemoryDir + "/..": false, dir + "v": false,
	} {
		d := newDiffs()
		if d.Bind("f", &policy.Volume{Name: "v", Kind: policy.VolumeMemory}, at); (d.N == 0) != want {
			t.Errorf("%s: %s", at, said(d))
		}
	}
}

func TestParametersOfALayer(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	good := []string{
		contract.VerityRootHash + "=" + hash, contract.VeritySalt + "=0102", contract.VerityDataBlocks + "=9",
		contract.VerityHashOffset + "=36864",
	}
	for _, tc := range []struct {
		at    int
		value string
		same  bool
	}{
		{0, good[0], true},
		{0, contract.VerityRootHash + "=" + strings.Repeat("cd", 32), false},
		{1, contract.VeritySalt + "=" + strings.Repeat("0", 120), true},
		{1, contract.VeritySalt + "=" + strings.Repeat("0", 121), false},
		{1, contract.VeritySalt + "=xyz", false},
		{2, contract.VerityHashOffset + "=9", false},
	} {
		list := append([]string{}, good...)
		list[tc.at] = tc.value
		d := newDiffs()
		if d.layer("f", &Storage{layer: hash, member: "layers[0]"}, list); (d.N == 0) != tc.same {
			t.Errorf("%s: %s", tc.value, said(d))
		}
	}
	d := newDiffs()
	if d.layer("f", &Storage{layer: hash}, good[:3]); d.N == 0 {
		t.Error("a parameter is missing")
	}
	if out, points := layers([]string{hash, hash}, "layers"); len(out) != 1 || len(points) != 1 {
		t.Errorf("one layer that an image has twice: %d storages, %v", len(out), points)
	}
}

// TestSubPathsNeedTheirVolume: a sub path's storage names the place of its volume.
func TestSubPathsNeedTheirVolume(t *testing.T) {
	at := subPath("id", "/v")
	bind := &pb.Storage{
		Driver: contract.DriverBind, Source: contract.FilesDir + "/" + CopyPrefix + "v", Fstype: "bind", MountPoint: at,
		DriverOptions: []string{contract.OptionSubPath + "a"},
	}
	for _, c := range []change{
		{"its storage", func(a asked) { a.subPath(bind) }, ""},
		{"no storage", func(a asked) { a.subPath(nil) }, `storages: expected a storage for "` + at + `", got none`},
		{"no place of a volume", func(a asked) {
			a.subPath(&pb.Storage{
				Driver: contract.DriverBind, Source: "/etc", Fstype: "bind", MountPoint: at,
				DriverOptions: []string{contract.OptionSubPath + "a"},
			})
		}, `storages[0].source: expected a place for a volume below "` + contract.FilesDir + `", got "/etc"`},
	} {
		c.test(t)
	}
}

func (a asked) subPath(s *pb.Storage) {
	a.volume(policy.Volume{Name: "v", Kind: policy.VolumeCopy}, subPath("id", "/v"))
	a.c.Mounts[0].Source.Volume.SubPath = "a"
	if s != nil {
		a.req.Storages = append([]*pb.Storage{s}, a.req.Storages...)
	}
}
