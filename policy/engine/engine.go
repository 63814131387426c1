// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine decides whether a policy allows a request. It is the same code in the agent, the shim, the generator
// and the simulator, and it is pure: no files, no network, no clock.
//
// An Engine is the state machine of one guest. Check compares a decoded request with the policy and with what has
// happened before; it changes nothing. The caller applies the Grant that it returns, has the request handled, and then
// calls Commit, which is left out for a request that failed. Exited tells the engine of the end of a container's first
// process. Requests that change the guest must come one at a time, as the agent has them.
//
// Each method of the protocol has an entry in a table; one without an entry is denied, and a test compares the table
// with the descriptors. A request for a container is compared with all containers of the policy. The denial is that of
// the nearest one: the one with the fewest differences.
package engine

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/ident"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/copies"
)

// Engine is the policy of a guest with its state. Its methods may be called at the same time.
type Engine struct {
	policy *policy.Policy // nil: closed
	early  bool           // no VM runs: see Foresee

	mu     sync.Mutex
	box    sandbox              // guarded by mu
	lives  map[string]*instance // guarded by mu; by container id, also of those that are gone
	past   map[string]*past     // guarded by mu; by name in the policy
	copies *copies.Copies       // guarded by mu
	making making               // guarded by mu
	broken bool                 // guarded by mu; a removal has failed, so that nobody knows what is mounted where
}

// sandbox is what the pod has been told.
type sandbox struct {
	compare.Pod
	made    bool
	fields  map[string]string // values of Field… constants
	volumes map[string]string // places of volumes by their names
}

// instance is a container of the guest.
type instance struct {
	of      *policy.Container
	started bool
	exited  bool
	removed bool
	execs   map[string]*policy.Command // that were begun, by id; of "any", one without arguments
}

// making is the container of the last request for one, which may not be handled yet.
type making struct {
	id string
	of *policy.Container
}

// past is what has become of a container of the policy.
type past struct {
	started bool // at least once
	code    int  // of the last exit
	exited  bool // its last instance has exited
}

// New makes the engine of a policy. Without one it denies everything but what closed guests answer.
func New(p *policy.Policy) *Engine {
	return &Engine{
		policy: p, lives: map[string]*instance{}, past: map[string]*past{}, copies: copies.New(p),
		box: sandbox{
			Pod: compare.Pod{Live: map[string]string{}}, fields: map[string]string{}, volumes: map[string]string{},
		},
	}
}

// Grant is the permission for one request.
type Grant struct {
	apply, commit func()
}

// Apply changes the request to what is allowed of it: it takes the variables away that kubelet makes for services and
// that the policy does not name.
func (g *Grant) Apply() {
	if g != nil && g.apply != nil {
		g.apply()
	}
}

// Commit notes that the request was handled.
func (g *Grant) Commit() {
	if g != nil && g.commit != nil {
		g.commit()
	}
}

// And returns a permission with which more is to be called once the request was handled.
func (g *Grant) And(more func()) *Grant {
	return &Grant{apply: g.Apply, commit: func() {
		g.Commit()
		more()
	}}
}

// rule decides about the requests of one method. It is called with the lock held; so is the commit, later.
type rule func(*Engine, proto.Message) (*Grant, *compare.Denial)

// Check decides about a request. method is its full name, "/grpc.AgentService/CreateContainer". The error is a
// *compare.Denial.
func (e *Engine) Check(method string, req proto.Message) (*Grant, error) {
	method = strings.TrimPrefix(method, "/")
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := rules[method]
	switch {
	case !ok:
		return nil, &compare.Denial{
			Code: compare.Method, Field: compare.Quote(method), Want: "a method of the protocol",
			Got: "it",
		}
	case e.policy == nil && !answersClosed[method]:
		return nil, noPolicy(method)
	case e.broken && !answersBroken[method]:
		return nil, &compare.Denial{
			Code: compare.Order, Field: "guest", Want: "one in which every removal succeeded",
			Got: "one in which a mount or a container could not be removed",
		}
	}
	g, d := r(e, req)
	if d != nil {
		return nil, d
	}
	if g != nil && g.commit != nil {
		commit := g.commit
		g.commit = func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			commit()
		}
	}
	return g, nil
}

// Foresee decides about a pod, and about one of its containers if c is not nil, before their VM runs. What a request
// has only later (storages, devices, sources of mounts) and what depends on other containers is not compared: the
// guest compares all of it. So Foresee denies nothing that the guest would allow.
func Foresee(p *policy.Policy, box *pb.CreateSandboxRequest, c *pb.CreateContainerRequest) error {
	e := New(p)
	e.early = true
	g, err := e.Check("/"+service+"CreateSandbox", box)
	if err != nil || c == nil {
		return err
	}
	g.Commit()
	_, err = e.Check("/"+service+"CreateContainer", c)
	return err
}

// Exited notes the end of a container's first process.
func (e *Engine) Exited(id string, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.lives[id]
	if c == nil || c.exited {
		return
	}
	c.exited = true
	delete(e.box.Live, c.of.Name)
	p := e.of(c.of)
	p.exited, p.code = true, code
}

// Broken notes that what a container had mounted could not be removed. Nothing new begins in this guest any more.
func (e *Engine) Broken() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.broken = true
}

// Forward decides about a connection to a TCP port of the guest's loopback address.
func (e *Engine) Forward(port uint32) error {
	if e.policy == nil {
		return noPolicy("port")
	}
	if w := e.policy.Pod.WorkloadPort; w != 0 && port == uint32(w) {
		return &compare.Denial{
			Code: compare.Capability, Field: "port",
			Want: "another port than that of the workload API, which only containers reach", Got: compare.Show(port),
		}
	}
	if port <= 1<<16-1 && slices.Contains(e.policy.Pod.PortForward, uint16(port)) {
		return nil
	}
	return &compare.Denial{
		Code: compare.Capability, Field: "port", Want: "a port of pod.portForward", Got: compare.Show(port),
		Fix: "pod.portForward with " + compare.Show(port),
	}
}

// Resolver decides whether the guest's processes may ask the host for names. A host that may
// choose the name servers chooses the answers, so the policy's rule about resolv.conf decides.
func (e *Engine) Resolver() error {
	if e.policy == nil {
		return noPolicy("resolver")
	}
	if dns := e.policy.Pod.DNS; dns.FromHost || slices.Contains(dns.Lines, contract.ResolverLine) {
		return nil
	}
	return &compare.Denial{
		Code: compare.Capability, Field: "resolver", Want: "name servers of pod.dns",
		Got: compare.Show(contract.ResolverLine), Fix: "pod.dns.lines with " + compare.Show(contract.ResolverLine),
	}
}

// Output says whether the host may read the output of a process. Where it may not, the agent reads and discards it, so
// that the process does not wait. exec is "" for a container's first process.
func (e *Engine) Output(id, exec string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.known(id)
	return c != nil && (c.Allow.Logs || exec != "" && exec != id)
}

// Workload returns the name in the policy of a container that is being created or lives, if it may ask the guest for
// anything; else "".
func (e *Engine) Workload(id string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.known(id); c != nil && c.Workload.Opens() {
		return c.Name
	}
	return ""
}

// Workloads lists the containers that may ask the guest for anything, by their names in the policy, and the port on
// which they may, or 0.
func (e *Engine) Workloads() (names []string, port uint16) {
	if e.policy == nil {
		return nil, 0
	}
	for _, c := range e.policy.Containers {
		if c.Workload.Opens() {
			names = append(names, c.Name)
		}
	}
	return names, e.policy.Pod.WorkloadPort
}

// known returns the policy's container of an id.
func (e *Engine) known(id string) *policy.Container {
	switch {
	case e.lives[id] != nil:
		return e.lives[id].of
	case e.making.id == id:
		return e.making.of
	}
	return nil
}

// Secrets lists the secrets of a container that exists, or that was asked for last.
func (e *Engine) Secrets(id string) []policy.Secret {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.lives[id] != nil:
		return e.lives[id].of.Secrets
	case e.making.id == id && e.making.of != nil:
		return e.making.of.Secrets
	}
	return nil
}

// Pulled returns the image that the guest pulls from a source. ok is false if the policy has none.
func (e *Engine) Pulled(source string) (img policy.Image, ok bool) {
	if e.policy == nil {
		return policy.Image{}, false
	}
	return e.policy.Pulled(source)
}

// Pulls says whether the guest pulls images.
func (e *Engine) Pulls() bool { return e.policy != nil && e.policy.Pulls() }

// Streams decides whether byte streams may be opened, which later requests name.
func (e *Engine) Streams() error {
	if e.policy == nil {
		return noPolicy("stream")
	}
	return nil
}

func noPolicy(field string) *compare.Denial {
	return &compare.Denial{
		Code: compare.NoPolicy, Field: field, Want: "a file " + policy.FileName + " in the pod's initdata", Got: "none",
	}
}

// of returns the past of a container of the policy.
func (e *Engine) of(c *policy.Container) *past {
	p := e.past[c.Name]
	if p == nil {
		p = &past{}
		e.past[c.Name] = p
	}
	return p
}

// instance finds a container of the guest that was not removed.
func (e *Engine) instance(id string) (*instance, *compare.Denial) {
	c := e.lives[id]
	if c == nil || c.removed {
		return nil, &compare.Denial{
			Code: compare.ID, Field: "container_id", Want: "the id of a container of this guest",
			Got: compare.Quote(id),
		}
	}
	return c, nil
}

// admitID checks the form of an id.
func admitID(field, id string) *compare.Denial {
	if ident.ID(id) {
		return nil
	}
	return &compare.Denial{
		Code: compare.ID, Field: field, Want: "1 to 128 letters, digits and _.-, the first a letter or digit",
		Got: compare.Quote(id),
	}
}

func createSandbox(e *Engine, m proto.Message) (*Grant, *compare.Denial) {
	req, ok := m.(*pb.CreateSandboxRequest)
	if !ok {
		return nil, mistyped(m)
	}
	if e.box.made {
		return nil, &compare.Denial{
			Code: compare.Order, Field: "sandbox_id", Want: "one sandbox in the guest's life",
			Got: "a second one",
		}
	}
	if d := admitID("sandbox_id", req.GetSandboxId()); d != nil {
		return nil, d
	}
	d := &compare.Diffs{Fields: maps.Clone(e.box.fields), Root: "pod"}
	d.Sandbox(&e.policy.Pod, req)
	if d.First != nil {
		return nil, d.First
	}
	return &Grant{commit: func() {
		e.box.made, e.box.Hostname = true, req.GetHostname()
		maps.Copy(e.box.fields, d.Fields)
	}}, nil
}

func mistyped(m proto.Message) *compare.Denial {
	return &compare.Denial{
		Code: compare.Method, Field: "request", Want: "a message of this method",
		Got: string(m.ProtoReflect().Descriptor().Name()),
	}
}
