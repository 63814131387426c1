// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen"
)

// Name is what the policy calls the container: names and IDs of such containers change with each.
const Name = "main"

// Input is all that a policy depends on.
type Input struct {
	Container Container
	Image     gen.Image
	Allow     gen.Allow
	// Unpinned admits any content of the host's files that are mounted into the container.
	Unpinned bool
	// Interfaces are further interfaces of the network.
	Interfaces []string
}

// Policy makes the policy of a container that is a pod of its own. A note names each value that is pinned less strictly
// than it could be.
func Policy(in Input) (p *policy.Policy, notes []string, err error) {
	g := generator{Input: in, spec: in.Container.Spec}
	if p, err = g.policy(); err != nil {
		return nil, nil, fmt.Errorf("container %s: %w", in.Container.ID, err)
	}
	return p, g.notes, nil
}

type generator struct {
	Input
	spec  *specs.Spec
	notes []string
}

func (g *generator) note(format string, args ...any) {
	g.notes = append(g.notes, fmt.Sprintf(format, args...))
}

func (g *generator) policy() (*policy.Policy, error) {
	if err := request.CheckPod(g.spec, true); err != nil {
		return nil, err
	}
	c, err := g.container()
	if err != nil {
		return nil, err
	}
	p := &policy.Policy{APIVersion: policy.APIVersion, Containers: []policy.Container{c}, Pod: policy.Pod{
		Hostname: policy.Value{Is: &g.spec.Hostname}, SharedShm: g.sharedShm(),
		Copy: g.Allow.Copy, Debug: g.Allow.Debug, Stats: g.Allow.Stats,
	}}
	if g.Container.engineMade() {
		p.Pod.Hostname = policy.Value{Type: policy.TypeName}
		g.note("the host name is made of the container's ID, so the host may choose it: give one with --hostname to pin it")
	}
	for _, name := range slices.Concat(g.Container.Interfaces, g.Interfaces) {
		if !slices.ContainsFunc(p.Pod.Network.Interfaces, func(i policy.Interface) bool { return i.Name == name }) {
			p.Pod.Network.Interfaces = append(p.Pod.Network.Interfaces, policy.Interface{Name: name})
		}
	}
	if len(p.Pod.Network.Interfaces) > 0 {
		p.Pod.Network.Routes, p.Pod.Network.Neighbours = true, true
	}
	return p, p.Validate()
}

// sharedShm says whether the shim gives the pod a /dev/shm in place of the engine's.
func (g *generator) sharedShm() bool {
	return slices.ContainsFunc(g.spec.Mounts, func(m specs.Mount) bool {
		return request.IsBind(m) && isShm(m.Destination)
	})
}

func isShm(destination string) bool { return path.Clean(destination) == "/dev/shm" }

func (g *generator) container() (out policy.Container, err error) {
	sources, binds, err := g.binds()
	if err != nil {
		return out, err
	}
	conv, err := request.Convert(request.Input{
		ID: g.Container.ID, Spec: g.spec, SharedShm: g.sharedShm(), Binds: binds,
	})
	if err != nil {
		return out, err
	}
	if conv.SandboxPidNS {
		return out, fmt.Errorf("it joins the processes of another container, and a pod of its own has none")
	}
	oci := request.Container(request.ContainerInput{
		ID: g.Container.ID, OCI: conv.OCI, Terminal: g.spec.Process.Terminal,
	}).GetOCI()
	out = policy.Container{
		Name: Name, Kind: policy.App, Restart: policy.Always, Process: g.process(oci.GetProcess()),
		Linux: gen.Linux(oci.GetLinux()), ReadonlyRfs: oci.GetRoot().GetReadonly(), Hostname: oci.GetHostname() != "",
		Annotations: g.annotations(oci.GetAnnotations()),
		Image:       policy.Image{Manifest: g.Image.Manifest, Layers: gen.Layers(g.layers())},
		Allow: policy.Capabilities{
			Logs: g.Allow.Logs, Stdin: g.Allow.Stdin, Exec: policy.Exec{Any: g.Allow.Exec},
		},
	}
	out.Linux.Masked = policy.Paths{Required: oci.GetLinux().GetMaskedPaths()} // none depends on the release
	out.Linux.Seccomp = []string{policy.SeccompDigest(oci.GetLinux().GetSeccomp())}
	for i, m := range oci.GetMounts() {
		source, ok := sources[i]
		if !ok {
			source = gen.FixedSource(m)
		}
		out.Mounts = append(out.Mounts, policy.Mount{
			Destination: m.GetDestination(), Type: m.GetType(), Options: m.GetOptions(), Source: source,
		})
	}
	return out, nil
}

// layers are those of the root file system, the lowest first.
func (g *generator) layers() []string {
	if !g.Container.Docker {
		return g.Image.Layers
	}
	return append(slices.Clone(g.Image.Layers), dockerLayer)
}

func (g *generator) process(p *agent.Process) policy.Process {
	out := gen.Process(p)
	for _, l := range p.GetRlimits() {
		limit := policy.Rlimit{Type: l.GetType(), Soft: l.GetSoft(), Hard: l.GetHard()}
		out.Rlimits.Limits = append(out.Rlimits.Limits, limit)
	}
	for _, e := range p.GetEnv() {
		name, text, _ := strings.Cut(e, "=")
		v := policy.Value{Is: &text}
		if name == "HOSTNAME" && text == g.spec.Hostname && g.Container.engineMade() {
			v = policy.Value{Field: policy.FieldHostname}
		}
		out.Env = append(out.Env, policy.Env{Name: name, Value: v})
	}
	slices.SortFunc(out.Env, func(a, b policy.Env) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// annotations are pinned as they are, but for the container's ID, and for nerdctl's notes to itself about the names and
// directories of the container, which nothing in the guest reads.
func (g *generator) annotations(all map[string]string) (out []policy.Annotation) {
	for _, a := range gen.Annotations(all) {
		switch {
		case strings.HasPrefix(a.Key, nerdctlLabels):
			a.Value, a.Optional = policy.Value{Type: policy.TypeAny}, true
		case a.Is != nil && *a.Is == g.Container.ID:
			a.Value = policy.Value{Type: policy.TypeID}
		}
		out = append(out, a)
	}
	return out
}

// binds decides about the bind mounts of the specification, by index, as the shim does for a TEE.
func (g *generator) binds() (map[int]policy.Source, map[int]request.Bound, error) {
	list, err := volume.Plan(volume.Input{
		ID: g.Container.ID, Spec: g.spec, TEE: true, HostPath: volume.ReadOnly,
	})
	if err != nil {
		return nil, nil, err
	}
	sources, bound := map[int]policy.Source{}, map[int]request.Bound{}
	for _, b := range list {
		switch b.Kind {
		case volume.Guest:
			bound[b.Index] = request.Bound{Guest: b.Source}
			sources[b.Index] = policy.Source{Is: &b.Source}
		case volume.Copied:
			if isShm(b.Destination) {
				continue // the pod's own takes its place
			}
			content, err := g.copied(b)
			if err != nil {
				return nil, nil, fmt.Errorf("mount %s: %w", b.Destination, err)
			}
			sources[b.Index] = policy.Source{Copy: content}
		default:
			return nil, nil, fmt.Errorf("mount %s: no policy can be made of a %s", b.Destination, b.Kind)
		}
	}
	return sources, bound, nil
}

// copied is the content of a file or directory of the host, of which the guest gets a copy.
func (g *generator) copied(b volume.Bind) (*policy.Content, error) {
	made := slices.Contains(strings.Split(b.Source, "/"), g.Container.ID)
	switch b.Destination {
	case "/etc/hostname":
		if made && !g.Container.engineMade() && g.spec.Hostname != "" {
			return gen.Single([]byte(g.spec.Hostname + "\n")), nil
		}
	case "/etc/hosts", "/etc/resolv.conf": // have addresses that only the host knows
	default:
		made = false
	}
	if made || g.Unpinned {
		return &policy.Content{Rule: policy.ContentUnpinned}, nil
	}
	return nil, fmt.Errorf("%s is of the host, which can change it at any time: put it into the image, or admit any "+
		"content with --allow-unpinned", b.Source)
}
