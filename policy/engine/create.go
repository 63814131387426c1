// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/copies"
)

// match compares a request with each container of the policy. It returns the first that fits and may be created now, or
// what is wrong with the nearest.
func (e *Engine) match(req *pb.CreateContainerRequest) (*policy.Container, *compare.Diffs, *compare.Denial) {
	var nearest, fits *compare.Denial
	fewest := 0
	name := req.GetOCI().GetAnnotations()[contract.CRIContainerName]
	for _, c := range e.candidates(name) {
		d := &compare.Diffs{
			Fields: maps.Clone(e.box.fields), Volumes: maps.Clone(e.box.volumes), Drop: map[string]bool{},
			Root: "containers[" + c.Name + "]", Early: e.early,
		}
		d.Container(e.policy, c, req, &e.box.Pod)
		if d.First == nil {
			if e.early {
				return c, d, nil
			}
			wrong := e.mayCreate(c)
			if wrong == nil {
				wrong = e.copies.Admit(copies.Holder{ID: req.GetContainerId(), Of: c, Places: d.Volumes})
			}
			if wrong == nil {
				return c, d, nil
			}
			if fits == nil { // the first one is that of the request's name
				fits = wrong
			}
			continue
		}
		d.First.Container = c.Name
		if nearest == nil || d.N < fewest {
			nearest, fewest = d.First, d.N
		}
	}
	if fits != nil {
		return nil, nil, fits
	}
	if e.policy.Pod.Debug && !e.declared(name) {
		return e.debug(req)
	}
	if nearest == nil {
		nearest = &compare.Denial{
			Code: compare.Value, Field: "container", Want: "one of the policy, which has none",
			Got: "one",
		}
	}
	return nil, nil, nearest
}

// candidates are the policy's containers, first the one that the request names: it fits mostly, and then the others are
// not compared.
func (e *Engine) candidates(name string) []*policy.Container {
	out := make([]*policy.Container, 0, len(e.policy.Containers)+1)
	for i := range e.policy.Containers {
		if c := &e.policy.Containers[i]; c.Name == name {
			out = append([]*policy.Container{c}, out...)
		} else {
			out = append(out, c)
		}
	}
	return out
}

// declared says whether the policy has a container of this name. A request under such a name is not for debugging.
func (e *Engine) declared(name string) bool {
	return slices.ContainsFunc(e.policy.Containers, func(c policy.Container) bool { return c.Name == name })
}

// debug decides about a container that the policy does not declare.
func (e *Engine) debug(req *pb.CreateContainerRequest) (*policy.Container, *compare.Diffs, *compare.Denial) {
	if d := compare.Long(req); d != nil {
		return nil, nil, d
	}
	c := compare.Debug(req, &e.box.Pod, e.box.volumes)
	if d := admitID("OCI.Annotations["+compare.Quote(contract.CRIContainerName)+"]", c.Name); d != nil {
		return nil, nil, d
	}
	d := &compare.Diffs{
		Fields: maps.Clone(e.box.fields), Volumes: maps.Clone(e.box.volumes), Drop: map[string]bool{}, Early: e.early,
	}
	d.Container(e.policy, c, req, &e.box.Pod)
	wrong := d.First
	if wrong == nil && !e.early {
		wrong = e.mayCreate(c)
	}
	if wrong == nil && e.past[c.Name] != nil {
		wrong = &compare.Denial{Code: compare.Order, Field: "container", Want: "one such container of a name", Got: "another"}
	}
	if wrong != nil {
		wrong.Container, wrong.Fix = c.Name, "" // no entry of a policy would allow it
		return nil, nil, wrong
	}
	return c, d, nil
}

// mayCreate checks the order: one live instance, init containers one after the other, the rest after them.
func (e *Engine) mayCreate(c *policy.Container) *compare.Denial {
	deny := func(want, got, fix string) *compare.Denial {
		if fix != "" {
			fix = "containers[" + c.Name + "]." + fix
		}
		return &compare.Denial{Code: compare.Order, Container: c.Name, Field: "container", Want: want, Got: got, Fix: fix}
	}
	for _, o := range e.lives {
		if o.of == c && !o.exited && !o.removed {
			return deny("one live instance", "a second one", "")
		}
	}
	if p := e.past[c.Name]; p != nil && p.exited {
		switch {
		case c.Kind == policy.Init && p.code == 0:
			return deny("an init container to run once", "a repetition after its success", "")
		case c.Restart == policy.Never, c.Restart == policy.OnFailure && p.code == 0:
			return deny("no instance after exit code "+compare.Show(p.code)+", by restart "+compare.Quote(c.Restart), "one",
				"restart = "+compare.Quote(policy.Always))
		}
	}
	for i := range e.policy.Containers {
		before := &e.policy.Containers[i]
		if before == c || before.Kind == policy.App {
			return nil
		}
		p := e.past[before.Name]
		switch {
		case before.Kind == policy.Sidecar && (p == nil || !p.started):
			return deny("that sidecar "+before.Name+" was started before", "this container first", "")
		case before.Kind == policy.Init && (p == nil || !p.exited || p.code != 0):
			return deny("that init container "+before.Name+" has exited with 0 before", "this container first", "")
		}
	}
	return nil
}

func createContainer(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.CreateContainerRequest)
	if !ok {
		return nil, mistyped(m)
	}
	id := req.GetContainerId()
	if d := admitID("container_id", id); d != nil {
		return nil, d
	}
	if e.lives[id] != nil {
		return nil, &compare.Denial{
			Code: compare.ID, Field: "container_id", Want: "an id that was not used before",
			Got: compare.Quote(id),
		}
	}
	if !e.box.made {
		return nil, &compare.Denial{
			Code: compare.Order, Field: "container_id", Want: "a sandbox before its containers",
			Got: "none",
		}
	}
	c, d, wrong := e.match(req)
	if wrong != nil {
		return nil, wrong
	}
	e.making = making{id, c}
	return &Grant{
		apply: func() { dropEnv(req.GetOCI().GetProcess(), d.Drop) },
		commit: func() {
			e.lives[id] = &instance{of: c, execs: map[string]*policy.Command{}}
			e.box.Live[c.Name] = id
			e.of(c).exited = false
			maps.Copy(e.box.fields, d.Fields)
			maps.Copy(e.box.volumes, d.Volumes)
			e.copies.Own(copies.Holder{ID: id, Of: c, Places: d.Volumes})
		},
	}, nil
}

// dropEnv takes variables away.
func dropEnv(p *pb.Process, names map[string]bool) {
	if p != nil && len(names) > 0 {
		p.Env = slices.DeleteFunc(p.Env, func(v string) bool {
			name, _, _ := strings.Cut(v, "=")
			return names[name]
		})
	}
}

func startContainer(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	c, d := e.instance(containerOf(m))
	if d != nil {
		return nil, d
	}
	if c.started || c.exited {
		return nil, &compare.Denial{
			Code: compare.Order, Container: c.of.Name, Field: "container_id", Want: "a container that was not started before",
			Got: "one that was",
		}
	}
	return &Grant{commit: func() { c.started, e.of(c.of).started = true, true }}, nil
}

func removeContainer(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	c, d := e.instance(containerOf(m))
	if d != nil { // the shim repeats removals, and removes what was never made: the agent knows
		return nil, nil
	}
	return &Grant{commit: func() {
		c.removed = true
		delete(e.box.Live, c.of.Name)
	}}, nil
}

func execProcess(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.ExecProcessRequest)
	if !ok {
		return nil, mistyped(m)
	}
	c, wrong := e.instance(req.GetContainerId())
	if wrong != nil {
		return nil, wrong
	}
	if d := admitID("exec_id", req.GetExecId()); d != nil {
		return nil, d
	}
	if !c.started || c.exited {
		return nil, &compare.Denial{
			Code: compare.Order, Container: c.of.Name, Field: "container_id", Want: "a container that runs",
			Got: "one that does not",
		}
	}
	command, wrong := c.command(req)
	if wrong != nil {
		return nil, wrong
	}
	d := &compare.Diffs{Fields: maps.Clone(e.box.fields), Drop: map[string]bool{}, Root: "containers[" + c.of.Name + "]"}
	compare.Fixed(d, "string_user", false, req.GetStringUser() != nil)
	d.Exec(c.of, req.GetProcess())
	if d.First != nil {
		d.First.Container = c.of.Name
		return nil, d.First
	}
	return &Grant{
		apply: func() { dropEnv(req.GetProcess(), d.Drop) },
		commit: func() {
			c.execs[req.GetExecId()] = command
			maps.Copy(e.box.fields, d.Fields)
		},
	}, nil
}

// command finds the command that an exec runs. Arguments that the policy does not have are not shown.
func (c *instance) command(req *pb.ExecProcessRequest) (*policy.Command, *compare.Denial) {
	allowed, args := c.of.Allow.Exec, req.GetProcess().GetArgs()
	at := "containers[" + c.of.Name + "].allow.exec"
	if allowed.Any {
		return &policy.Command{}, nil
	}
	same := slices.IndexFunc(allowed.Commands, func(o policy.Command) bool { return slices.Equal(o.Args, args) })
	switch {
	case len(allowed.Commands) == 0:
		return nil, &compare.Denial{
			Code: compare.Capability, Container: c.of.Name, Field: "process.Args", Want: "none: the capability exec is closed",
			Got: compare.Show(len(args)) + " words", Fix: at + ".commands with them",
		}
	case same < 0:
		return nil, &compare.Denial{
			Code: compare.Value, Container: c.of.Name, Field: "process.Args", Want: "a command of the policy",
			Got: compare.Show(len(args)) + " other words", Fix: at + ".commands with them",
		}
	case allowed.Commands[same].TTY != req.GetProcess().GetTerminal():
		return nil, &compare.Denial{
			Code: compare.Value, Container: c.of.Name, Field: "process.Terminal", Want: compare.Show(allowed.Commands[same].TTY),
			Got: compare.Show(req.GetProcess().GetTerminal()), Fix: compare.Index(at+".commands",
				same) + ".tty = " + compare.Show(req.GetProcess().GetTerminal()),
		}
	}
	return &allowed.Commands[same], nil
}

// containerOf reads the field that most requests have.
func containerOf(m proto.Message) string {
	if r, ok := m.(interface{ GetContainerId() string }); ok {
		return r.GetContainerId()
	}
	return ""
}
