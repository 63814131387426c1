// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/image/layer"
	"github.com/coco-shim/coco/image/verity"
	"github.com/coco-shim/coco/internal/worktest"
)

func dirs(paths ...string) []layer.Source {
	var out []layer.Source
	for _, p := range paths {
		out = append(out, dirSource(p))
	}
	return out
}

func images(paths ...string) []layer.Source {
	var out []layer.Source
	for _, p := range paths {
		out = append(out, layer.Source{Kind: layer.Image, Path: p})
	}
	return out
}

func overlayMount(opts ...string) []Mount {
	return []Mount{{Type: "overlay", Source: "overlay", Options: opts}}
}

func erofsMount(path string) Mount {
	return Mount{Type: "erofs", Source: path, Options: []string{"ro", "loop"}}
}

func TestResolve(t *testing.T) {
	docker := func(opts string) Request {
		return Request{Root: "/var/lib/docker/overlay2/abc/merged", HostMounts: []*mountinfo.Info{
			{Mountpoint: "/var/lib/docker/overlay2/abc/merged", FSType: "overlay", Root: "/", VFSOptions: opts},
		}}
	}
	for _, tc := range []struct {
		name string
		req  Request
		want Plan
	}{
		{
			"overlayfs snapshotter",
			Request{Mounts: overlayMount("index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")},
			Plan{Lower: dirs("/s/2/fs", "/s/1/fs"), Upper: "/s/3/fs"},
		},
		{
			"marks in attributes of users",
			Request{Mounts: overlayMount("userxattr", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs")},
			Plan{
				Lower: []layer.Source{{Kind: layer.Dir, Path: "/s/2/fs", UserXattr: true}}, Upper: "/s/3/fs", UserXattr: true,
			},
		},
		{
			"read-only root",
			Request{Mounts: overlayMount("upperdir=/u", "workdir=/w", "lowerdir=/l"), ReadOnly: true},
			Plan{Lower: dirs("/l"), Upper: "/u", ReadOnly: true},
		},
		{
			"overlayfs view",
			Request{Mounts: overlayMount("lowerdir=/s/2/fs:/s/1/fs")},
			Plan{Lower: dirs("/s/2/fs", "/s/1/fs"), ReadOnly: true},
		},
		{
			"colons and backslashes in names",
			Request{Mounts: overlayMount(`lowerdir=/a\:b:/c\\d`, `upperdir=/u\:v`, "workdir=/w")},
			Plan{Lower: dirs("/a:b", `/c\d`), Upper: "/u:v"},
		},
		{
			"one lowerdir+ for each layer",
			Request{Mounts: overlayMount("lowerdir+=/a:b", "lowerdir+=/c")},
			Plan{Lower: dirs("/a:b", "/c"), ReadOnly: true},
		},
		{
			"native snapshotter",
			Request{Mounts: []Mount{{Type: "bind", Source: "/n/7", Options: []string{"rbind", "rw"}}}},
			Plan{Upper: "/n/7"},
		},
		{
			"view of one layer",
			Request{Mounts: []Mount{{Type: "bind", Source: "/s/1/fs/", Options: []string{"ro", "rbind"}}}},
			Plan{Lower: dirs("/s/1/fs"), ReadOnly: true},
		},
		{
			"erofs snapshotter",
			Request{Mounts: []Mount{
				erofsMount("/e/2/layer.erofs"), erofsMount("/e/1/layer.erofs"),
				{Type: "format/overlay", Source: "overlay", Options: []string{
					"workdir=/e/3/work", "upperdir=/e/3/fs",
					"lowerdir={{ overlay 0 1 }}",
				}},
			}},
			Plan{Lower: images("/e/2/layer.erofs", "/e/1/layer.erofs"), Upper: "/e/3/fs"},
		},
		{
			"erofs snapshotter in block mode",
			Request{Mounts: []Mount{
				{Type: "mkfs/ext4", Source: "/e/3/rwlayer.img", Options: []string{
					"X-containerd.mkfs.fs=ext4",
					"X-containerd.mkfs.size=1", "rw", "loop",
				}},
				erofsMount("/e/1/layer.erofs"),
				{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
					"X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
					"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}",
				}},
			}},
			Plan{Lower: images("/e/1/layer.erofs")},
		},
		{
			"erofs view",
			Request{Mounts: []Mount{erofsMount("/e/1/layer.erofs")}},
			Plan{Lower: images("/e/1/layer.erofs"), ReadOnly: true},
		},
		{
			"layers in reverse",
			Request{Mounts: []Mount{
				erofsMount("/a"), erofsMount("/b"),
				{Type: "format/overlay", Options: []string{"lowerdir={{ overlay 1 0 }}"}},
			}},
			Plan{Lower: images("/b", "/a"), ReadOnly: true},
		},
		{
			"Docker's overlay2",
			docker(
				"rw,lowerdir=/var/lib/docker/overlay2/l/AB:/var/lib/docker/overlay2/l/CD,upperdir=/var/lib/docker/overlay2/abc/diff,workdir=/var/lib/docker/overlay2/abc/work"),
			Plan{
				Lower: dirs("/var/lib/docker/overlay2/l/AB", "/var/lib/docker/overlay2/l/CD"),
				Upper: "/var/lib/docker/overlay2/abc/diff",
			},
		},
		{
			"Docker's overlay2 with relative directories", docker("rw,lowerdir=l/AB:l/CD,upperdir=abc/diff,workdir=abc/work"),
			Plan{
				Lower: dirs("/var/lib/docker/overlay2/l/AB", "/var/lib/docker/overlay2/l/CD"),
				Upper: "/var/lib/docker/overlay2/abc/diff",
			},
		},
		{
			"blanks and commas as mountinfo shows them",
			docker(`rw,lowerdir=/a\040b\054c,upperdir=/u,workdir=/w,metacopy=on,volatile`),
			Plan{Lower: dirs("/a b,c"), Upper: "/u"},
		},
		{"a plain directory", Request{Root: "/bundle/rootfs"}, Plan{Upper: "/bundle/rootfs"}},
		{"another file system at the root", Request{
			Root:       "/r",
			HostMounts: []*mountinfo.Info{{Mountpoint: "/r", FSType: "ext4", Root: "/"}},
		}, Plan{Upper: "/r"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Resolve(tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Resolve (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	many := "lowerdir=" + strings.Repeat("/a:", maxLayers+1) + "/a"
	for _, tc := range []struct {
		name   string
		mounts []Mount
		want   string
		class  func(error) bool
	}{
		{
			"an unknown type",
			[]Mount{{Type: "zfs", Source: "pool/x", Options: []string{"a=b"}}},
			`"zfs", source "pool/x", options ["a=b"]`, errdefs.IsNotImplemented,
		},
		{"an unknown option", overlayMount("lowerdir=/a", "what=1"), `"what=1"`, errdefs.IsNotImplemented},
		{"an unknown transformation", []Mount{{Type: "magic/overlay"}}, `"magic"`, errdefs.IsNotImplemented},
		{"shifted ids", overlayMount("lowerdir=/a", "uidmap=0:1000:1"), "shifted user ids", errdefs.IsNotImplemented},
		{"overlay without layers", overlayMount("upperdir=/a", "workdir=/b"), "without lowerdir", errdefs.IsInvalidArgument},
		{"relative directories", overlayMount("lowerdir=a"), "not an absolute path", errdefs.IsInvalidArgument},
		{"an empty directory name", overlayMount("lowerdir=/a::/b"), "empty part", errdefs.IsInvalidArgument},
		{
			"a merged index",
			[]Mount{{Type: "erofs", Source: "/e/fsmeta", Options: []string{"ro", "loop", "device=/e/1"}}},
			"max_unmerged_layers", errdefs.IsNotImplemented,
		},
		{
			"a reference to nothing",
			[]Mount{{Type: "format/overlay", Options: []string{"lowerdir={{ mount 3 }}"}}},
			"refers to mount 3", errdefs.IsInvalidArgument,
		},
		{
			"a root on a device",
			[]Mount{{Type: "ext4", Source: "{{ source 0 }}"}},
			"device of its own",
			errdefs.IsNotImplemented,
		},
		{
			"a mount inside the root",
			[]Mount{{Type: "bind", Source: "/a", Target: "/etc"}},
			`"/etc"`,
			errdefs.IsNotImplemented,
		},
		{"too many layers", overlayMount(many), "layers", errdefs.IsInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Resolve(Request{Mounts: tc.mounts})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !tc.class(err) {
				t.Errorf("Resolve = %v, want an error with %q", err, tc.want)
			}
		})
	}
	if _, err := Resolve(Request{Root: "rootfs"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Resolve of nothing = %v", err)
	}
}

func TestUpperWithContentIsAPrivateLayer(t *testing.T) {
	p := Plan{Lower: dirs("/l"), Upper: "/u"}
	if diff := cmp.Diff(dirs("/l"), p.Layers(true)); diff != "" {
		t.Error(diff)
	}
	want := []layer.Source{{Kind: layer.Dir, Path: "/u", Private: true}, dirSource("/l")}
	if diff := cmp.Diff(want, p.Layers(false)); diff != "" {
		t.Error(diff)
	}
	// A root of one directory is a layer even when it is empty.
	if got := (Plan{Upper: "/u"}).Layers(true); len(got) != 1 {
		t.Errorf("Layers = %v", got)
	}
}

func TestStorages(t *testing.T) {
	attached := func(n byte, addr string) Attached {
		return Attached{
			Params:  verity.Params{RootHash: [32]byte{n}, Salt: []byte{0}, DataBlocks: 2, HashOffset: 8192},
			Address: hypervisor.BlockAddress{Driver: "scsi", Source: addr},
		}
	}
	hash := func(n byte) string { return fmt.Sprintf("%02x%s", n, strings.Repeat("00", 31)) }
	got, err := Storages("c1", []Attached{attached(2, "1:0"), attached(1, "2:0"), attached(2, "1:0")}, Upper{MiB: 128})
	if err != nil {
		t.Fatal(err)
	}
	layerStorage := func(n byte, addr string) *agent.Storage {
		return &agent.Storage{
			Driver: "scsi", Source: addr, Fstype: "erofs", Options: []string{"ro"},
			DriverOptions: []string{
				"coco.verity.root_hash=" + hash(n), "coco.verity.salt=00",
				"coco.verity.data_blocks=2", "coco.verity.hash_offset=8192",
			},
			MountPoint: "/run/kata-containers/virtual-volumes/" + hash(n),
		}
	}
	const upper = "/run/kata-containers/sandbox/upper/c1"
	want := []*agent.Storage{
		layerStorage(2, "1:0"), layerStorage(1, "2:0"),
		{
			Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", Options: []string{"size=128m", "mode=0700"},
			MountPoint: upper,
		},
		{
			Driver: "overlayfs", Source: "none", Fstype: "overlay", MountPoint: "/run/kata-containers/c1/rootfs",
			Options: []string{
				"lowerdir=/run/kata-containers/virtual-volumes/" + hash(2) + ":/run/kata-containers/virtual-volumes/" + hash(1),
				"upperdir=" + upper + "/fs", "workdir=" + upper + "/work",
			},
			DriverOptions: []string{
				"io.katacontainers.volume.overlayfs.create_directory=" + upper + "/fs",
				"io.katacontainers.volume.overlayfs.create_directory=" + upper + "/work",
			},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Storages (-want +got):\n%s", diff)
	}
	const at = "/run/kata-containers/sandbox/images/x"
	wantImage := []*agent.Storage{
		layerStorage(2, "1:0"), layerStorage(1, "2:0"),
		{
			Driver: "overlayfs", Source: "none", Fstype: "overlay", MountPoint: at, Options: []string{
				"ro", "lowerdir=/run/kata-containers/virtual-volumes/" + hash(2) + ":/run/kata-containers/virtual-volumes/" +
					hash(1),
			},
		},
	}
	if diff := cmp.Diff(wantImage, Image(at, []Attached{attached(2, "1:0"), attached(1, "2:0"), attached(2, "1:0")}),
		protocmp.Transform()); diff != "" {
		t.Errorf("Image (-want +got):\n%s", diff)
	}
	wantImage = []*agent.Storage{
		layerStorage(1, "2:0"),
		{
			Driver: "bind", Source: "/run/kata-containers/virtual-volumes/" + hash(1), Fstype: "bind", MountPoint: at,
			Options: []string{"ro"},
		},
	}
	if diff := cmp.Diff(wantImage, Image(at, []Attached{attached(1, "2:0")}), protocmp.Transform()); diff != "" {
		t.Errorf("Image of one layer (-want +got):\n%s", diff)
	}
	for _, id := range []string{"", "..", "a/b", "a:b"} {
		if _, err := Storages(id, []Attached{attached(1, "0:0")}, Upper{MiB: 1}); err == nil {
			t.Errorf("Storages(%q) succeeded", id)
		}
	}
	if _, err := Storages("c", nil, Upper{MiB: 1}); err == nil {
		t.Error("Storages without layers succeeded")
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("overlay", "overlay", "lowerdir=/a:/b\nupperdir=/u\nworkdir=/w")
	f.Add("format/overlay", "", "lowerdir={{ overlay 0 9 }}")
	f.Fuzz(func(t *testing.T, kind, source, opts string) {
		defer worktest.Bound(t, len(kind)+len(source)+len(opts))()
		m := Mount{Type: kind, Source: source, Options: strings.Split(opts, "\n")}
		p, err := Resolve(Request{Mounts: []Mount{erofsMount("/a"), m}})
		if err != nil {
			return
		}
		for _, s := range p.Layers(false) {
			if !path.IsAbs(s.Path) {
				t.Fatalf("layer %v of %v is not absolute", s, m)
			}
		}
	})
}

func FuzzHostOverlayOptions(f *testing.F) {
	f.Add(`rw,lowerdir=/a\040b:l/X,upperdir=/u,workdir=/w`)
	f.Fuzz(func(t *testing.T, opts string) {
		defer worktest.Bound(t, len(opts))()
		root := "/home/id/merged"
		p, err := Resolve(Request{
			Root:       root,
			HostMounts: []*mountinfo.Info{{Mountpoint: root, FSType: "overlay", Root: "/", VFSOptions: opts}},
		})
		if err != nil {
			return
		}
		for _, s := range p.Layers(false) {
			if !path.IsAbs(s.Path) {
				t.Fatalf("layer %v of %q is not absolute", s, opts)
			}
		}
	})
}
