// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/testimage"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy/gen/predict"
	"github.com/coco-shim/coco/tests/harness"
)

const shapedImage = "docker.io/library/shaped:1"

// shaped has all that a configuration of an image can change in a specification.
var shaped = v1.Config{
	Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"sleep 1000"}, User: "user:extra", WorkingDir: "/home",
	Env: []string{"LANG=C", "A=image"}, Volumes: map[string]struct{}{"/data": {}},
}

// predicted is one container as a pod describes it, and as kubelet passes it to CRI.
type predicted struct {
	name   string
	image  string
	config v1.Config
	pod    corev1.PodSpec
	c      corev1.Container
	change func(*runtime.ContainerConfig)
}

func ptr[T any](v T) *T { return &v }

func predictedCases() []predicted {
	plain := v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin:/usr/bin"}}
	return []predicted{
		{
			name: "plain", image: harness.Image, config: plain,
			change: func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{} },
		},
		{
			name: "image", image: shapedImage, config: shaped,
			c: corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "pod"}, {Name: "HOSTNAME", Value: "other"}}},
			change: func(c *runtime.ContainerConfig) {
				c.Envs = []*runtime.KeyValue{{Key: "A", Value: "pod"}, {Key: "HOSTNAME", Value: "other"}}
				c.Linux.SecurityContext.RunAsUsername = "user"
			},
		},
		{
			name: "secured", image: shapedImage, config: shaped,
			pod: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: ptr[int64](1000), RunAsGroup: ptr[int64](7), FSGroup: ptr[int64](9), SupplementalGroups: []int64{8},
			}},
			c: corev1.Container{
				Args: []string{"true"}, WorkingDir: "/tmp", TTY: true,
				SecurityContext: &corev1.SecurityContext{
					ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
					Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"CHOWN"}},
				},
			},
			change: func(c *runtime.ContainerConfig) {
				c.Args, c.WorkingDir, c.Tty = []string{"true"}, "/tmp", true
				s := c.GetLinux().GetSecurityContext()
				s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 7}
				s.SupplementalGroups = []int64{9, 8}
				s.ReadonlyRootfs, s.NoNewPrivs = true, true
				s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}}
			},
		},
		{
			name: "uid", image: harness.Image, config: plain,
			c: corev1.Container{
				Command: []string{"/bin/true"}, SecurityContext: &corev1.SecurityContext{
					RunAsUser: ptr[int64](12345), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			},
			change: func(c *runtime.ContainerConfig) {
				c.Command = []string{"/bin/true"}
				c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 12345}
				c.Linux.SecurityContext.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
			},
		},
	}
}

// TestPredictedSpecificationsAreContainerds compares what package predict says with what containerd writes, after the
// conversion that both go through. The pod runs under runc: nothing of it depends on the handler.
func TestPredictedSpecificationsAreContainerds(t *testing.T) {
	t.Parallel()
	n := node(t)
	im, err := testimage.Busybox("")
	if err != nil {
		t.Fatal(err)
	}
	im.Config = shaped
	im = im.WithLayer(testimage.File{Path: "data", Mode: os.ModeDir | 0o755})
	if err := n.Import(shapedImage, im); err != nil {
		t.Fatal(err)
	}
	passwd, group := usersOf(im)
	p := &pod{t: t, node: n, config: podConfig(t)}
	p.runUnder("runc")
	for _, tt := range predictedCases() {
		t.Run(tt.name, func(t *testing.T) {
			q := *p
			q.t = t
			dir := t.TempDir()
			id := q.create(tt.name, "", func(c *runtime.ContainerConfig) { asKubelet(t, c, dir, tt) })
			got, real := q.specification(id)
			tt.c.Name, tt.c.Image = tt.name, tt.image
			want, err := predict.Container(predict.Input{
				Meta: predict.Meta{Name: p.config.GetMetadata().GetName(), Namespace: "test", Hostname: p.config.GetHostname()},
				Pod:  &tt.pod, Container: &tt.c,
				Image: predict.Image{
					Entrypoint: tt.config.Entrypoint, Cmd: tt.config.Cmd, Env: tt.config.Env, User: tt.config.User,
					WorkingDir: tt.config.WorkingDir, Volumes: slices.Sorted(maps.Keys(tt.config.Volumes)),
					Passwd: passwd, Group: group,
				},
				Mounts: []predict.Mount{{Source: predict.VolumesDir + "configmap/conf", Destination: "/conf", ReadOnly: true}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(neutral(t, predict.ContainerID, want), neutral(t, id, got), protocmp.Transform()); diff != "" {
				t.Errorf("predicted, and what containerd wrote: %s\nwhole: %s", diff, real)
			}
		})
	}
}

// usersOf are the files of an image by which users are found.
func usersOf(im testimage.Image) (passwd, group []byte) {
	for _, f := range im.Layers[0] {
		switch f.Path {
		case "etc/passwd":
			passwd = f.Data
		case "etc/group":
			group = f.Data
		}
	}
	return passwd, group
}

// asKubelet makes of a container what kubelet makes: its files, masked paths, and the rest by change.
func asKubelet(t *testing.T, c *runtime.ContainerConfig, dir string, tt predicted) {
	t.Helper()
	c.Command, c.Image.Image = nil, tt.image
	c.Image.UserSpecifiedImage = tt.image
	s := c.GetLinux().GetSecurityContext()
	s.Seccomp = nil
	s.MaskedPaths = append(slices.Clone(predict.AlwaysMasked), predict.SometimesMasked...)
	s.MaskedPaths = append(s.MaskedPaths, "/sys/devices/system/cpu/cpu0/thermal_throttle")
	s.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	for _, m := range []struct {
		name, at string
		ro       bool
	}{{"conf", "/conf", true}, {"hosts", "/etc/hosts", false}, {"msg", corev1.TerminationMessagePathDefault, false}} {
		path := filepath.Join(dir, m.name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: path, ContainerPath: m.at, Readonly: m.ro})
	}
	tt.change(c)
}

// specification is what containerd wrote for a container.
func (p *pod) specification(id string) (s *specs.Spec, text string) {
	p.t.Helper()
	r, err := p.node.Runtime.ContainerStatus(p.context(), &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		p.t.Fatalf("ContainerStatus: %v", err)
	}
	var info struct {
		RuntimeSpec *specs.Spec `json:"runtimeSpec"`
	}
	text = r.GetInfo()["info"]
	if err := json.Unmarshal([]byte(text), &info); err != nil || info.RuntimeSpec == nil {
		p.t.Fatalf("the status has no specification: %v: %s", err, text)
	}
	return info.RuntimeSpec, text
}

// neutral is a converted specification without the ids, the sources of copies and the limits of one pod.
func neutral(t *testing.T, id string, s *specs.Spec) *agent.Spec {
	t.Helper()
	out, err := request.Convert(request.Input{ID: id, Spec: s, SharedShm: true})
	if err != nil {
		t.Fatal(err)
	}
	o := out.OCI
	o.Version = ""
	o.Root.Path = strings.ReplaceAll(o.GetRoot().GetPath(), id, "ID")
	o.Process.OOMScoreAdj = 0
	slices.Sort(o.Process.Env)
	for _, m := range o.GetMounts() {
		m.Source = strings.ReplaceAll(m.GetSource(), id, "ID")
	}
	slices.SortFunc(o.Linux.Namespaces, func(a, b *agent.LinuxNamespace) int {
		return strings.Compare(a.GetType(), b.GetType())
	})
	o.Linux.CgroupsPath = ""
	o.Linux.Resources = &agent.LinuxResources{Devices: o.GetLinux().GetResources().GetDevices()}
	for _, key := range []string{contract.CRISandboxID, contract.CRISandboxUID} {
		if o.GetAnnotations()[key] == "" {
			t.Errorf("annotation %s is missing: %v", key, o.GetAnnotations())
		}
		delete(o.Annotations, key)
	}
	return o
}
