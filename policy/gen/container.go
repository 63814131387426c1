// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// container makes the policy of one container.
func (g *generator) container(c *corev1.Container) (policy.Container, error) {
	img, ok := g.Images[c.Image]
	if !ok {
		return policy.Container{}, fmt.Errorf("image %s was not resolved", c.Image)
	}
	mounts, err := g.mounts(c)
	if err != nil {
		return policy.Container{}, err
	}
	disks, err := g.disks(c)
	if err != nil {
		return policy.Container{}, err
	}
	spec, err := predict.Container(predict.Input{
		Meta: g.meta, Pod: g.pod, Container: c, Image: img.Config, Objects: objects{g}, Mounts: mounts, Disks: disks,
	})
	if err != nil {
		return policy.Container{}, err
	}
	sources, err := g.sources(c, img, spec)
	if err != nil {
		return policy.Container{}, err
	}
	out, err := g.converted(c, spec, sources)
	if err != nil {
		return policy.Container{}, err
	}
	out.Image = policy.Image{Manifest: img.Manifest, Layers: Layers(img.Layers)}
	if g.Options.GuestPull {
		out.Image.Pull = img.Repository
	}
	if out.Linux.Seccomp, err = g.seccomp(c, spec.Process.Capabilities.Bounding); err != nil {
		return policy.Container{}, err
	}
	out.Secrets = g.Options.Secrets[c.Name]
	expectSealed(&out)
	out.Workload = g.Options.Workload.Containers[c.Name]
	out.Allow, err = g.allow(c)
	return out, err
}

// expectSealed has variables take a sealed text only where the manifest does not tell their text and a secret opens it.
func expectSealed(c *policy.Container) {
	for _, s := range c.Secrets {
		i := slices.IndexFunc(c.Process.Env, func(e policy.Env) bool { return e.Name == s.Env })
		if s.Sealed && i >= 0 && c.Process.Env[i].Type == policy.TypeAny {
			c.Process.Env[i].Type = policy.TypeSealed
		}
	}
}

// Layers lists the root hashes as the agent mounts them: the topmost first, each once.
func Layers(lowestFirst []string) (out []string) {
	for _, l := range slices.Backward(lowestFirst) {
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// converted runs the shim's conversion and takes over its result.
func (g *generator) converted(
	c *corev1.Container, spec *specs.Spec, sources map[int]policy.Mount,
) (policy.Container, error) {
	binds := map[int]request.Bound{}
	for i, m := range sources {
		if m.Source.Copy == nil {
			binds[i] = request.Bound{Guest: contract.SandboxDir}
		}
	}
	disks := map[string]bool{}
	for _, d := range c.VolumeDevices {
		disks[d.DevicePath] = true
	}
	conv, err := request.Convert(request.Input{
		ID: predict.ContainerID, Spec: spec, SharedShm: true, Binds: binds, Disks: disks,
	})
	if err != nil {
		return policy.Container{}, err
	}
	req := request.Container(request.ContainerInput{
		ID: predict.ContainerID, OCI: conv.OCI, Terminal: spec.Process.Terminal, SharedPIDs: conv.SandboxPidNS,
	})
	oci := req.GetOCI()
	out := policy.Container{
		Name: c.Name, Process: g.process(oci.GetProcess()), Linux: Linux(oci.GetLinux()),
		ReadonlyRfs: oci.GetRoot().GetReadonly(), Annotations: Annotations(oci.GetAnnotations()),
		Hostname: oci.GetHostname() != "", Disks: slices.Sorted(maps.Keys(disks)),
	}
	if req.GetSandboxPidns() {
		out.Linux.PIDs = policy.PodPIDs
	}
	for i, m := range oci.GetMounts() {
		pm := sources[i]
		pm.Destination, pm.Type, pm.Options = m.GetDestination(), m.GetType(), m.GetOptions()
		if pm.Source == (policy.Source{}) {
			pm.Source = FixedSource(m)
		}
		out.Mounts = append(out.Mounts, pm)
	}
	return out, nil
}

// FixedSource is the source of a mount that is no volume and no copy.
func FixedSource(m *agent.Mount) policy.Source {
	if m.GetSource() == contract.ShmDir {
		return policy.Source{Shm: true}
	}
	return policy.Source{Is: &m.Source}
}

// Process takes over the process of a request, without its environment.
func Process(p *agent.Process) policy.Process {
	u, caps := p.GetUser(), p.GetCapabilities()
	return policy.Process{
		Args: p.GetArgs(), Cwd: p.GetCwd(), TTY: p.GetTerminal(), NoNewPrivileges: p.GetNoNewPrivileges(),
		User: policy.User{UID: u.GetUID(), GID: u.GetGID(), Groups: u.GetAdditionalGids()},
		Caps: policy.Caps{
			Bounding: caps.GetBounding(), Effective: caps.GetEffective(), Inheritable: caps.GetInheritable(),
			Permitted: caps.GetPermitted(), Ambient: caps.GetAmbient(),
		},
		Rlimits: policy.Rlimits{FromHost: true}, // containerd's CRI passes none
	}
}

func (g *generator) process(p *agent.Process) policy.Process {
	out := Process(p)
	for _, e := range p.GetEnv() {
		name, text, _ := strings.Cut(e, "=")
		v := value(text)
		if v.Type == policy.TypeAny {
			g.note("env %s may have any value: it depends on what only the node knows", name)
		}
		out.Env = append(out.Env, policy.Env{Name: name, Value: v})
	}
	out.Env = append(out.Env, g.apiServer(out.Env)...)
	slices.SortFunc(out.Env, func(a, b policy.Env) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// apiServer are the variables by which a program finds the API server. Kubelet sets them for every pod; the agent
// removes them where no entry names them, so that they are there only for pods that have a token.
func (g *generator) apiServer(have []policy.Env) (out []policy.Env) {
	if !g.hasToken() {
		return nil
	}
	tcp := "tcp"
	for _, v := range []struct {
		name string
		policy.Value
	}{
		{"KUBERNETES_PORT", policy.Value{Type: policy.TypeURL}},
		{"KUBERNETES_PORT_443_TCP", policy.Value{Type: policy.TypeURL}},
		{"KUBERNETES_PORT_443_TCP_ADDR", policy.Value{Type: policy.TypeIP}},
		{"KUBERNETES_PORT_443_TCP_PORT", policy.Value{Type: policy.TypePort}},
		{"KUBERNETES_PORT_443_TCP_PROTO", policy.Value{Is: &tcp}},
		{"KUBERNETES_SERVICE_HOST", policy.Value{Type: policy.TypeIP}},
		{"KUBERNETES_SERVICE_PORT", policy.Value{Type: policy.TypePort}},
		{"KUBERNETES_SERVICE_PORT_HTTPS", policy.Value{Type: policy.TypePort}},
	} {
		if !slices.ContainsFunc(have, func(e policy.Env) bool { return e.Name == v.name }) {
			out = append(out, policy.Env{Name: v.name, Value: v.Value, Optional: true})
		}
	}
	return out
}

// Linux takes over a section of a request, without its filter.
func Linux(l *agent.Linux) policy.Linux {
	out := policy.Linux{
		Sysctls: l.GetSysctl(), Propagation: l.GetRootfsPropagation(),
		Readonly: policy.Paths{Required: l.GetReadonlyPaths()},
	}
	for _, ns := range l.GetNamespaces() {
		out.Namespaces = append(out.Namespaces, ns.GetType())
	}
	for _, m := range l.GetMaskedPaths() {
		if slices.Contains(predict.SometimesMasked, m) {
			out.Masked.Optional = append(out.Masked.Optional, m)
		} else {
			out.Masked.Required = append(out.Masked.Required, m)
		}
	}
	for _, d := range l.GetDevices() {
		out.Devices = append(out.Devices, policy.Device{
			Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), Mode: d.GetFileMode(),
			UID: d.GetUID(), GID: d.GetGID(),
		})
	}
	for _, r := range l.GetResources().GetDevices() {
		out.DeviceRule = append(out.DeviceRule, policy.DeviceRule{
			Allow: r.GetAllow(), Type: r.GetType(), Major: r.GetMajor(), Minor: r.GetMinor(), Access: r.GetAccess(),
		})
	}
	return out
}

// isPassed says whether an annotation of a pod is one that containerd passes on to coco's shim.
func isPassed(key string) bool {
	return strings.HasPrefix(key, "io.coco.") || strings.HasPrefix(key, "io.katacontainers.")
}

// Annotations takes over the annotations of a request.
func Annotations(all map[string]string) (out []policy.Annotation) {
	for _, k := range sortedKeys(all) {
		a := policy.Annotation{Key: k, Value: value(all[k]), Optional: isPassed(k)}
		switch k {
		case contract.CRISandboxID:
			a.Value = policy.Value{Field: policy.FieldSandboxID}
		case contract.CRISandboxUID:
			a.Value, a.Optional = policy.Value{Field: policy.FieldPodUID}, true // containerd 1.6 has none
		case contract.CRIImageName: // releases write different forms of it, and nothing follows from it
			a.Value = policy.Value{Type: policy.TypeAny}
		}
		out = append(out, a)
	}
	return out
}

// allow opens what the owner allows, and the commands of probes and hooks.
func (g *generator) allow(c *corev1.Container) (policy.Capabilities, error) {
	a := g.Options.Allow
	out := policy.Capabilities{Logs: a.Logs, Stdin: a.Stdin, Exec: policy.Exec{Any: a.Exec}}
	if a.Exec {
		return out, nil
	}
	var errs []error
	add := func(e *corev1.ExecAction, expand bool) {
		if e == nil || len(e.Command) == 0 {
			return
		}
		args := e.Command
		if expand {
			args = predict.StaticArgs(args, c.Env)
		}
		if i := slices.IndexFunc(args, func(s string) bool { n, _ := predict.Marks(s); return len(n) > 0 }); i >= 0 {
			errs = append(errs, fmt.Errorf("the command %q uses the variable of a service, which only the node knows",
				e.Command))
			return
		}
		if !slices.ContainsFunc(out.Exec.Commands, func(o policy.Command) bool { return slices.Equal(o.Args, args) }) {
			out.Exec.Commands = append(out.Exec.Commands, policy.Command{Args: args})
		}
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if p != nil {
			add(p.Exec, true)
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				add(h.Exec, false)
			}
		}
	}
	return out, errors.Join(errs...)
}

// sources decides for each bind mount of a specification where the guest gets its content from, by index.
func (g *generator) sources(c *corev1.Container, img Image, spec *specs.Spec) (map[int]policy.Mount, error) {
	binds, err := volume.Plan(volume.Input{
		ID: predict.ContainerID, Spec: spec, Mounts: g.mountTable(c), TEE: true, HostPath: volume.ReadOnly,
		Kubelets: []volume.Root{{Name: predict.KubeletRoot, Real: predict.KubeletRoot}},
		Engines:  []volume.Root{{Name: predict.EngineRoot, Real: predict.EngineRoot}},
	})
	if err != nil {
		return nil, err
	}
	out := map[int]policy.Mount{}
	for _, b := range binds {
		m, err := g.source(c, img, b)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", b.Destination, err)
		}
		if m.Source != (policy.Source{}) {
			out[b.Index] = m
		}
		if b.Kind == volume.Termination {
			spec.Annotations[contract.TerminationMessagePath] = b.Destination // as the shim does
		}
	}
	return out, nil
}
