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
)

// match compares a request with each container of the policy. It returns the first that fits and may be created now, or
// what is wrong with the nearest.
func (e *Engine) match(req *pb.CreateContainerRequest) (*policy.Container, *diffs, *Denial) {
	var nearest, fits *Denial
	fewest := 0
	name := req.GetOCI().GetAnnotations()[contract.CRIContainerName]
	for i := range e.policy.Containers {
		c := &e.policy.Containers[i]
		d := &diffs{
			fields: maps.Clone(e.box.fields), volumes: maps.Clone(e.box.volumes), drop: map[string]bool{},
			root: "containers[" + c.Name + "]",
		}
		d.container(e.policy, c, req, &e.box)
		if d.first == nil {
			wrong := e.mayCreate(c)
			if wrong == nil {
				wrong = e.copies.admit(e.policy, c, req.GetContainerId(), d.volumes)
			}
			if wrong == nil {
				return c, d, nil
			}
			if fits == nil || c.Name == name {
				fits = wrong
			}
			continue
		}
		d.first.Container = c.Name
		if nearest == nil || d.n < fewest || d.n == fewest && c.Name == name {
			nearest, fewest = d.first, d.n
		}
	}
	if fits != nil {
		return nil, nil, fits
	}
	if nearest == nil {
		nearest = &Denial{Code: Value, Field: "container", Want: "one of the policy, which has none", Got: "one"}
	}
	return nil, nil, nearest
}

// mayCreate checks the order: one live instance, init containers one after the other, the rest after them.
func (e *Engine) mayCreate(c *policy.Container) *Denial {
	deny := func(want, got, fix string) *Denial {
		if fix != "" {
			fix = "containers[" + c.Name + "]." + fix
		}
		return &Denial{Code: Order, Container: c.Name, Field: "container", Want: want, Got: got, Fix: fix}
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
			return deny("no instance after exit code "+show(p.code)+", by restart "+quote(c.Restart), "one",
				"restart = "+quote(policy.Always))
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

func createContainer(e *Engine, m proto.Message) (*Grant, *Denial) {
	req, ok := m.(*pb.CreateContainerRequest)
	if !ok {
		return nil, mistyped(m)
	}
	id := req.GetContainerId()
	if d := admitID("container_id", id); d != nil {
		return nil, d
	}
	if e.lives[id] != nil {
		return nil, &Denial{Code: ID, Field: "container_id", Want: "an id that was not used before", Got: quote(id)}
	}
	if !e.box.made {
		return nil, &Denial{Code: Order, Field: "container_id", Want: "a sandbox before its containers", Got: "none"}
	}
	c, d, wrong := e.match(req)
	if wrong != nil {
		return nil, wrong
	}
	e.making = making{id, c}
	return &Grant{
		apply: func() { dropEnv(req.GetOCI().GetProcess(), d.drop) },
		commit: func() {
			e.lives[id] = &instance{of: c, execs: map[string]*policy.Command{}}
			e.box.live[c.Name] = id
			e.of(c).exited = false
			maps.Copy(e.box.fields, d.fields)
			maps.Copy(e.box.volumes, d.volumes)
			e.copies.own(e.policy, c, id, d.volumes)
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

func startContainer(e *Engine, m proto.Message) (*Grant, *Denial) {
	c, d := e.instance(containerOf(m))
	if d != nil {
		return nil, d
	}
	if c.started || c.exited {
		return nil, &Denial{
			Code: Order, Container: c.of.Name, Field: "container_id", Want: "a container that was not started before",
			Got: "one that was",
		}
	}
	return &Grant{commit: func() { c.started, e.of(c.of).started = true, true }}, nil
}

func removeContainer(e *Engine, m proto.Message) (*Grant, *Denial) {
	c, d := e.instance(containerOf(m))
	if d != nil { // the shim repeats removals, and removes what was never made: the agent knows
		return nil, nil
	}
	return &Grant{commit: func() {
		c.removed = true
		delete(e.box.live, c.of.Name)
	}}, nil
}

func execProcess(e *Engine, m proto.Message) (*Grant, *Denial) {
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
		return nil, &Denial{
			Code: Order, Container: c.of.Name, Field: "container_id", Want: "a container that runs", Got: "one that does not",
		}
	}
	command, wrong := c.command(req)
	if wrong != nil {
		return nil, wrong
	}
	d := &diffs{fields: maps.Clone(e.box.fields), drop: map[string]bool{}, root: "containers[" + c.of.Name + "]"}
	fixed(d, "string_user", false, req.GetStringUser() != nil)
	d.exec(c.of, req.GetProcess())
	if d.first != nil {
		d.first.Container = c.of.Name
		return nil, d.first
	}
	return &Grant{
		apply: func() { dropEnv(req.GetProcess(), d.drop) },
		commit: func() {
			c.execs[req.GetExecId()] = command
			maps.Copy(e.box.fields, d.fields)
		},
	}, nil
}

// command finds the command that an exec runs. Arguments that the policy does not have are not shown.
func (c *instance) command(req *pb.ExecProcessRequest) (*policy.Command, *Denial) {
	allowed, args := c.of.Allow.Exec, req.GetProcess().GetArgs()
	at := "containers[" + c.of.Name + "].allow.exec"
	if allowed.Any {
		return &policy.Command{}, nil
	}
	same := slices.IndexFunc(allowed.Commands, func(o policy.Command) bool { return slices.Equal(o.Args, args) })
	switch {
	case len(allowed.Commands) == 0:
		return nil, &Denial{
			Code: Capability, Container: c.of.Name, Field: "process.Args", Want: "none: the capability exec is closed",
			Got: show(len(args)) + " words", Fix: at + ".commands with them",
		}
	case same < 0:
		return nil, &Denial{
			Code: Value, Container: c.of.Name, Field: "process.Args", Want: "a command of the policy",
			Got: show(len(args)) + " other words", Fix: at + ".commands with them",
		}
	case allowed.Commands[same].TTY != req.GetProcess().GetTerminal():
		return nil, &Denial{
			Code: Value, Container: c.of.Name, Field: "process.Terminal", Want: show(allowed.Commands[same].TTY),
			Got: show(req.GetProcess().GetTerminal()), Fix: index(at+".commands",
				same) + ".tty = " + show(req.GetProcess().GetTerminal()),
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
