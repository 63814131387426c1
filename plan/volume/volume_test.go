// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

const pods = "/srv/k/pods/6f1a-22"

var (
	roots   = []Root{{Name: "/var/lib/kubelet", Real: "/srv/k"}}
	engines = []Root{
		{Name: "/run/containerd", Real: "/run/containerd"},
		{Name: "/var/lib/containerd", Real: "/var/lib/containerd"},
	}
)

// table is what a node's mount table looks like.
func table() []*mountinfo.Info {
	m := func(at, fs, root string, minor int) *mountinfo.Info {
		return &mountinfo.Info{Mountpoint: at, FSType: fs, Root: root, Major: 8, Minor: minor}
	}
	return []*mountinfo.Info{
		m("/", "ext4", "/", 1),
		m("/srv", "xfs", "/data", 2),
		m("/run/containerd/cri/image-volumes/sandbox-1/0f1e", "overlay", "/", 50),
		m(pods+"/volumes/kubernetes.io~empty-dir/mem", "tmpfs", "/", 30),
		m(pods+"/volumes/kubernetes.io~empty-dir/huge", "hugetlbfs", "/", 31),
		m(pods+"/volumes/kubernetes.io~secret/token", "tmpfs", "/", 32),
		m(pods+"/volumes/kubernetes.io~csi/pvc-1/mount", "ext4", "/", 40),
		m(pods+"/volume-subpaths/disk/c/0", "xfs", "/data/k/pods/6f1a-22/volumes/kubernetes.io~empty-dir/disk/a/b", 2),
		m(pods+"/volume-subpaths/disk/c/1", "xfs", "/data/k/pods/6f1a-22/volumes/kubernetes.io~empty-dir/disk//deleted", 2),
		m(pods+"/volume-subpaths/mem/c/2", "tmpfs", "/x", 30),
		m(pods+"/volume-subpaths/token/c/3", "tmpfs", "/..2026/key", 32),
		m(pods+"/volume-subpaths/config/c/4", "xfs", "/data/k/pods/6f1a-22/volumes/kubernetes.io~configmap/config/..2026/key",
			2),
		m(pods+"/volume-subpaths/pvc/c/5", "ext4", "/sub", 40),
		m(pods+"/volume-subpaths/pvc-1/c/5", "ext4", "/sub", 40),
		m(pods+"/volume-subpaths/logs/c/6", "ext4", "/var/log", 1),
	}
}

func TestPlan(t *testing.T) {
	live := func(in *Input) { in.HostPath = Live }
	alone := func(in *Input) { in.LiveBinds, in.Spec.Annotations = true, nil }
	copies := func(in *Input) { in.Spec.Annotations = nil }
	const db = "/var/lib/docker/volumes/db/_data"
	refuse := func(in *Input) { in.HostPath = Refused }
	volumes := pods + "/volumes/kubernetes.io~"
	for _, tt := range []struct {
		name, source, dest string
		options            []string
		change             func(*Input)
		want               Bind
		refused            string
	}{
		{name: "emptyDir", source: volumes + "empty-dir/disk", want: Bind{Kind: Disk, Source: volumes + "empty-dir/disk"}},
		{
			name: "emptyDir with a slash", source: volumes + "empty-dir/disk/",
			want: Bind{Kind: Disk, Source: volumes + "empty-dir/disk"},
		},
		{name: "in memory", source: volumes + "empty-dir/mem", want: Bind{Kind: Memory, Source: volumes + "empty-dir/mem"}},
		{
			name: "/dev/shm as the sandbox API says it", source: "/dev/shm", dest: "/dev/shm", change: refuse,
			want: Bind{Source: "/dev/shm"},
		},
		{
			name: "in memory, as /dev/shm", source: volumes + "empty-dir/mem", dest: "/dev/shm",
			want: Bind{Kind: Memory, Source: volumes + "empty-dir/mem"},
		},
		{name: "of huge pages", source: volumes + "empty-dir/huge", refused: "huge pages"},
		{name: "configMap", source: volumes + "configmap/c", want: Bind{Kind: Updated, Source: volumes + "configmap/c"}},
		{
			name: "service account token", source: volumes + "projected/kube-api-access",
			want: Bind{Kind: Updated, Source: volumes + "projected/kube-api-access"},
		},
		{
			name: "sub path", source: pods + "/volume-subpaths/disk/c/0",
			want: Bind{Kind: Disk, Source: volumes + "empty-dir/disk", Sub: "a/b"},
		},
		{
			name: "sub path that is all of it", source: pods + "/volume-subpaths/disk/c/1",
			want: Bind{Kind: Disk, Source: volumes + "empty-dir/disk"},
		},
		{
			name: "sub path of memory", source: pods + "/volume-subpaths/mem/c/2",
			want: Bind{Kind: Memory, Source: volumes + "empty-dir/mem", Sub: "x"},
		},
		{
			name: "sub path of a secret", source: pods + "/volume-subpaths/token/c/3",
			want: Bind{Source: pods + "/volume-subpaths/token/c/3"},
		},
		{
			name: "sub path of a configMap", source: pods + "/volume-subpaths/config/c/4",
			want: Bind{Source: pods + "/volume-subpaths/config/c/4"},
		},
		{name: "sub path of a claim", source: pods + "/volume-subpaths/pvc-1/c/5", refused: "mounted on the host"},
		{
			name: "sub path of a directory of the host", source: pods + "/volume-subpaths/logs/c/6",
			want: Bind{Kind: Once, Source: pods + "/volume-subpaths/logs/c/6", ReadOnly: true},
		},
		{name: "sub path that is not mounted", source: pods + "/volume-subpaths/disk/c/7", refused: "is not mounted"},
		{name: "claim", source: volumes + "csi/pvc-1/mount", refused: "volumeDevices"},
		{
			name: "claim, read-only", source: volumes + "csi/pvc-1/mount", options: []string{"ro"},
			want: Bind{Kind: Once, Source: volumes + "csi/pvc-1/mount", ReadOnly: true},
		},
		{
			name: "termination message", source: pods + "/containers/c/0a1b2c", dest: "/dev/termination-log",
			want: Bind{Kind: Termination, Source: pods + "/containers/c/0a1b2c"},
		},
		{name: "etc-hosts", source: pods + "/etc-hosts", dest: "/etc/hosts", want: Bind{Source: pods + "/etc-hosts"}},
		{name: "hostPath", source: "/opt/x", want: Bind{Origin: Resolved, Kind: Once, Source: "/opt/x", ReadOnly: true}},
		{name: "termination message, from CRI-O", source: pods + "/containers/c/0a1b2c", change: func(in *Input) {
			in.Spec.Annotations = map[string]string{contract.CRIOSandboxID: "s", contract.CRIOLabels: `{"` + contract.PodUID +
				`":"6f1a-22"}`}
		}, want: Bind{Kind: Termination, Source: pods + "/containers/c/0a1b2c"}},
		{name: "no UID", source: pods + "/etc-hosts", change: func(in *Input) {
			refuse(in)
			delete(in.Spec.Annotations, contract.CRISandboxUID)
		}, refused: "runtime.host_path"},
		{name: "an UID that leads elsewhere", source: "/srv/k/pods/../x/etc-hosts", change: func(in *Input) {
			refuse(in)
			in.Spec.Annotations[contract.CRISandboxUID] = "../x"
		}, refused: "runtime.host_path"},
		{
			name: "termination message of another pod", source: "/srv/k/pods/other/containers/c/0a1b2c", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a root that is a link", source: "/var/lib/kubelet/pods/6f1a-22/etc-hosts", dest: "/etc/hosts",
			want: Bind{Source: pods + "/etc-hosts"},
		},
		{
			name: "termination message elsewhere", source: "/srv/tenant/pods/x/containers/a/crontab", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "configMap elsewhere", source: "/srv/tenant/pods/x/volumes/kubernetes.io~configmap/n", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "emptyDir elsewhere", source: "/srv/tenant/pods/x/volumes/kubernetes.io~empty-dir/n", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "etc-hosts elsewhere", source: "/srv/tenant/pods/x/etc-hosts", dest: "/etc/hosts", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a deep path elsewhere, in a TEE", source: "/srv/tenant" + volumes + "secret/s",
			change: func(in *Input) { in.TEE = true }, refused: "runtime.kubelet_dirs",
		},
		{
			name: "a root that is not known", source: "/data/kubelet/pods/6f1a-22/volumes/kubernetes.io~secret/s",
			refused: "add it to runtime.kubelet_dirs",
		},
		{
			name: "below kubelet's root, but not a pod's", source: "/srv/k/plugins/x", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a file of the host on /etc/hosts", source: "/etc/shadow", dest: "/etc/hosts", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a file of the host on /etc/hosts, in a TEE", source: "/etc/shadow", dest: "/etc/hosts",
			change: func(in *Input) { in.TEE = true }, refused: "confidential",
		},
		{
			name: "a file of the host on /run/.containerenv", source: "/etc/shadow", dest: "/run/.containerenv", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a directory of the host on /dev/shm", source: "/srv/x", dest: "/dev/shm", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a path with the sandbox's id", source: "/srv/tenant/sandbox-1/f", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "a path with the container's id deep in the engine's", source: "/var/lib/containerd/a/b/c/d/ctr-1/f",
			change: refuse, refused: "runtime.host_path",
		},
		{
			name: "hosts of another sandbox", source: "/var/lib/containerd/cri/sandboxes/sandbox-2/hosts", dest: "/etc/hosts",
			change: refuse, refused: "runtime.host_path",
		},
		{
			name: "hosts of the sandbox", source: "/var/lib/containerd/cri/sandboxes/sandbox-1/hosts", dest: "/etc/hosts",
			change: refuse, want: Bind{Source: "/var/lib/containerd/cri/sandboxes/sandbox-1/hosts"},
		},
		{name: "dots", source: "/srv/k/pods/6f1a-22/../../x", change: refuse, refused: "runtime.host_path"},
		{
			name: "image volume", source: "/run/containerd/cri/image-volumes/sandbox-1/0f1e", change: refuse,
			want: Bind{Kind: Image, Source: "/run/containerd/cri/image-volumes/sandbox-1/0f1e", ReadOnly: true},
		},
		{
			name: "sub path of an image volume", source: "/run/containerd/cri/image-volumes/sandbox-1/0f1e/a/b", change: refuse,
			want: Bind{Kind: Image, Source: "/run/containerd/cri/image-volumes/sandbox-1/0f1e", Sub: "a/b", ReadOnly: true},
		},
		{
			name: "image volume of another sandbox", source: "/run/containerd/cri/image-volumes/sandbox-2/0f1e", change: refuse,
			refused: "runtime.host_path",
		},
		{
			name: "image volume that is no overlay", source: "/run/containerd/cri/image-volumes/sandbox-1/beef", change: refuse,
			want: Bind{Source: "/run/containerd/cri/image-volumes/sandbox-1/beef"},
		},
		{
			name: "a device that every guest has", source: "/dev/null", change: func(in *Input) { in.TEE = true },
			want: Bind{Kind: Guest, Source: "/dev/null"},
		},
		{name: "another device", source: "/dev/sda", change: refuse, refused: "runtime.host_path"},
		{name: "hostPath that looks like a pod's", source: "/opt/pods/x", want: Bind{
			Origin: Resolved, Kind: Once,
			Source: "/opt/pods/x", ReadOnly: true,
		}},
		{
			name: "hostPath, writable", source: "/opt/x", change: func(in *Input) { in.HostPath = Writable },
			want: Bind{Origin: Resolved, Kind: Once, Source: "/opt/x"},
		},
		{
			name: "hostPath, refused", source: "/opt/x", change: func(in *Input) { in.HostPath = Refused },
			refused: "runtime.host_path",
		},
		{
			name: "hostPath in a TEE", source: "/opt/x", change: func(in *Input) { in.TEE, in.HostPath = true, Writable },
			refused: "confidential",
		},
		{name: "hostPath, live", source: "/opt/x", change: live, want: Bind{
			Origin: Resolved, Kind: Shared,
			Source: "/opt/x",
		}},
		{
			name: "hostPath, live, read-only", source: "/opt/x", options: []string{"rbind", "ro"}, change: live,
			want: Bind{Origin: Resolved, Kind: Shared, Source: "/opt/x", ReadOnly: true},
		},
		{
			name: "hostPath, live, in a TEE", source: "/opt/x", change: func(in *Input) { in.TEE, in.HostPath = true, Live },
			refused: "confidential",
		},
		{
			name: "claim, live", source: volumes + "csi/pvc-1/mount", change: live,
			want: Bind{Kind: Shared, Source: volumes + "csi/pvc-1/mount"},
		},
		{name: "claim, live, in a TEE", source: volumes + "csi/pvc-1/mount", change: func(in *Input) {
			in.TEE, in.HostPath = true, Live
		}, refused: "confidential"},
		{
			name: "sub path of a directory of the host, live", source: pods + "/volume-subpaths/logs/c/6", change: live,
			want: Bind{Kind: Shared, Source: pods + "/volume-subpaths/logs/c/6"},
		},
		{
			name: "etc-hosts beside live ones", source: pods + "/etc-hosts", dest: "/etc/hosts", change: live,
			want: Bind{Source: pods + "/etc-hosts"},
		},
		{
			name: "emptyDir beside live ones", source: volumes + "empty-dir/disk", change: live,
			want: Bind{Kind: Disk, Source: volumes + "empty-dir/disk"},
		},
		{
			name: "volume of an image beside live ones", source: "/var/lib/containerd/containers/ctr-1/volumes/0f", change: live,
			want: Bind{Source: "/var/lib/containerd/containers/ctr-1/volumes/0f"},
		},
		{
			name: "bind of a person, live", source: "/opt/x", change: alone,
			want: Bind{Origin: Named, Kind: Shared, Source: "/opt/x"},
		},
		{
			name: "bind of a person, live, read-only", source: "/opt/x", options: []string{"ro"}, change: alone,
			want: Bind{Origin: Named, Kind: Shared, Source: "/opt/x", ReadOnly: true},
		},
		{
			name: "bind of a person, live in the pods of Kubernetes only", source: "/opt/x",
			change: func(in *Input) { copies(in); in.HostPath = Live }, refused: "would be lost",
		},
		{name: "volume of Docker", source: db, change: alone, want: Bind{Origin: Named, Kind: Shared, Source: db}},
		{
			name: "volume of Docker in a TEE", source: db, change: func(in *Input) { alone(in); in.TEE = true },
			refused: "the volume db (" + db + ") is on the host, unencrypted",
		},
		{
			name: "volume of Docker in a TEE, read-only", source: db, options: []string{"ro"},
			change: func(in *Input) { alone(in); in.TEE = true }, want: Bind{Origin: Named, Source: db},
		},
		{name: "volume of Docker that would be a copy", source: db, change: copies, refused: `runtime.binds = "live"`},
		{
			name: "Docker's resolv.conf", source: "/x/containers/ctr-1/resolv.conf", dest: "/etc/resolv.conf",
			change: alone, want: Bind{Origin: Named, Source: "/x/containers/ctr-1/resolv.conf", Made: true},
		},
		{
			name: "Docker's resolv.conf in a TEE", source: "/x/containers/ctr-1/resolv.conf", dest: "/etc/resolv.conf",
			change: func(in *Input) { copies(in); in.TEE = true },
			want:   Bind{Origin: Named, Source: "/x/containers/ctr-1/resolv.conf", Made: true},
		},
		{
			name: "a person's own resolv.conf", source: "/opt/resolv.conf", dest: "/etc/resolv.conf", change: copies,
			refused: "the source /opt/resolv.conf would be a copy",
		},
		{
			name: "resolv.conf in a TEE", source: "/run/containerd/x/sandbox-1/resolv.conf", dest: "/etc/resolv.conf",
			change: func(in *Input) { in.TEE = true }, want: Bind{Source: "/run/containerd/x/sandbox-1/resolv.conf"},
		},
		{
			name: "volume of an image", source: "/var/lib/containerd/containers/ctr-1/volumes/0f",
			want: Bind{Source: "/var/lib/containerd/containers/ctr-1/volumes/0f"},
		},
		{
			name: "bind of a person, read-only", source: "/opt/x", options: []string{"ro"}, change: copies,
			want: Bind{Origin: Named, Source: "/opt/x"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dest == "" {
				tt.dest = "/mnt"
			}
			in := Input{ID: "ctr-1", HostPath: ReadOnly, Mounts: table(), Kubelets: roots, Engines: engines, Spec: &specs.Spec{
				Annotations: map[string]string{contract.CRISandboxID: "sandbox-1", contract.CRISandboxUID: "6f1a-22"},
				Mounts: []specs.Mount{
					{Destination: "/proc", Type: "proc", Source: "proc"},
					{Destination: tt.dest, Type: "bind", Source: tt.source, Options: tt.options},
				},
			}}
			if tt.change != nil {
				tt.change(&in)
			}
			got, err := Plan(in)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) || !strings.Contains(err.Error(), "mounts[1]") {
					t.Fatalf("Plan() = %v, %v, want a refusal with %q", got, err, tt.refused)
				}
				return
			}
			tt.want.Index, tt.want.Destination = 1, tt.dest
			if d := cmp.Diff([]Bind{tt.want}, got); err != nil || d != "" {
				t.Errorf("Plan() = %v (-want +got):\n%s", err, d)
			}
		})
	}
}

func FuzzKubelets(f *testing.F) {
	f.Add(pods + "/volumes/kubernetes.io~secret/x")
	f.Add("pods/pods/volumes//")
	f.Add("/var/lib/kubelet/pods/6f1a-22/containers/../../../..")
	f.Fuzz(func(t *testing.T, p string) {
		defer worktest.Bound(t, len(p))()
		pod, rest := kubelets(p)
		if rest != nil && fmt.Sprint(pod, "/", strings.Join(rest, "/")) != p {
			t.Errorf("kubelets(%q) = %q, %q", p, pod, rest)
		}
		binds, err := Plan(Input{
			Mounts: table(), Kubelets: roots, Engines: engines, HostPath: Refused, ID: "c",
			Spec: &specs.Spec{
				Annotations: map[string]string{contract.CRISandboxID: "s", contract.CRISandboxUID: "6f1a-22"},
				Mounts:      []specs.Mount{{Type: "bind", Source: p, Destination: "/etc/hosts"}},
			},
		})
		if err != nil || len(binds) == 0 {
			return
		}
		// Nothing of the host comes into a container but what is kubelet's for this pod, or the engine's.
		known := slices.ContainsFunc([]string{pods, "/run/containerd/", "/var/lib/containerd/"}, func(dir string) bool {
			return strings.HasPrefix(binds[0].Source, dir)
		})
		if binds[0].Kind != Guest && (!known || binds[0].Origin != Owned) {
			t.Errorf("Plan(%q) = %+v", p, binds[0])
		}
	})
}
