// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package request turns an OCI runtime specification into the requests that the agent gets.
//
// It is pure: no files, no clock, no environment. Parts that concern the host are removed: namespaces that the VM
// replaces, paths of the host's cgroups, hooks, labels of the host's security modules. Parts that the guest can
// execute are carried over. A part that can neither travel nor be ignored without changing the container's behaviour
// is refused with an error that names the field. All refusals are reported at once.
// docs/decisions/spec-conversion.md lists the ignored parts and the reasons.
package request

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

const shmPath = "/dev/shm"

// Input has the inputs of a conversion.
type Input struct {
	ID   string      // container id
	Spec *specs.Spec // not written to
	// SharedShm says that the pod has a /dev/shm of its own in the guest, which a bind mount onto
	// /dev/shm (that is how CRI describes it) is replaced by.
	SharedShm bool
	// Binds are bind mounts that lead to something of the pod's in the guest instead of a copy for
	// this container, by their index in the specification's mounts.
	Binds map[int]Bound
	// Disks are the paths in the container of block devices of the host that the VM gets; the agent
	// puts its own numbers for them.
	Disks map[string]bool
	// Rlimits are those of the process for which the specification names none.
	Rlimits []specs.POSIXRlimit
}

// Bound is where a bind mount leads to in the guest.
type Bound struct {
	Guest    string
	ReadOnly bool // overrides the specification
}

// Output is a container as the guest gets it, before storages, devices and ports are added.
type Output struct {
	OCI           *agent.Spec
	SandboxPidNS  bool   // the container joins the pod's process namespace
	Copies        []Copy // files and directories of the host that the mounts refer to
	GuestRootPath string // where the root file system is mounted in the guest
}

// Copy is a bind mount of the host: its source has to be in the guest at Guest before the container
// is made.
type Copy struct {
	Index       int    // in the specification's mounts
	Source      string // on the host
	Guest       string // in the guest
	Destination string // in the container, for errors
}

// refusals collects the unsupported settings, so that one error names them all.
type refusals []string

func (r *refusals) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

func (r refusals) err(id string) error {
	if len(r) == 0 {
		return nil
	}
	return fmt.Errorf("container %s cannot run in a VM as specified: %s: %w", id, strings.Join(r, "; "),
		errdefs.ErrInvalidArgument)
}

// Convert makes the guest's view of a container.
func Convert(in Input) (Output, error) {
	var r refusals
	s := in.Spec
	if s == nil || s.Process == nil || s.Linux == nil {
		r.add("the specification has no process or linux section")
		return Output{}, r.err(in.ID)
	}
	r.platforms(s)
	out := Output{GuestRootPath: contract.Rootfs(in.ID)}
	linux, pidns := r.linux(in, s)
	mounts, copies := r.mounts(in)
	r.hooks(s.Hooks)
	out.SandboxPidNS, out.Copies = pidns, copies
	out.OCI = &agent.Spec{
		Version:     s.Version,
		Process:     r.process("process", s.Process, in.Rlimits),
		Root:        &agent.Root{Path: out.GuestRootPath},
		Hostname:    s.Hostname,
		Mounts:      mounts,
		Annotations: annotations(s.Annotations),
		Linux:       linux,
	}
	if s.Root != nil {
		out.OCI.Root.Readonly = s.Root.Readonly
	}
	return out, r.err(in.ID)
}

func (r *refusals) platforms(s *specs.Spec) {
	for _, p := range []struct {
		name string
		set  bool
	}{
		{"solaris", s.Solaris != nil},
		{"windows", s.Windows != nil},
		{"vm", s.VM != nil},
		{"zos", s.ZOS != nil},
		{"freebsd", s.FreeBSD != nil},
	} {
		if p.set {
			r.add("%s: only Linux containers are supported", p.name)
		}
	}
}

// hooks refuses what would have to run inside the VM: the agent runs none. The others run on the host
// (package hooks).
func (r *refusals) hooks(h *specs.Hooks) {
	if h == nil {
		return
	}
	if len(h.CreateContainer) > 0 {
		r.add("hooks.createContainer: %s is a program of the host that would have to run in the container's namespaces, "+
			"which are inside the VM", h.CreateContainer[0].Path)
	}
	if len(h.StartContainer) > 0 {
		r.add("hooks.startContainer: %s would run inside the VM, whose agent runs no hooks", h.StartContainer[0].Path)
	}
}

// annotations drops the two that configure the VM: they were consumed on the host.
func annotations(in map[string]string) map[string]string {
	out := maps.Clone(in)
	delete(out, contract.KataInitdata)
	delete(out, contract.KataPolicy)
	return out
}

func (r *refusals) process(at string, p *specs.Process, defaults []specs.POSIXRlimit) *agent.Process {
	if len(p.Args) == 0 {
		r.add("%s.args is empty", at)
	}
	r.zeroBytes(at, p)
	if p.CommandLine != "" {
		r.add("%s.commandLine is for Windows", at)
	}
	if u := p.User.Umask; u != nil && *u != 0o022 {
		r.add("%s.user.umask %#o does not travel to the guest, only 0022 does", at, *u)
	}
	if p.Scheduler != nil {
		r.add("%s.scheduler does not travel to the guest", at)
	}
	if p.IOPriority != nil {
		r.add("%s.ioPriority does not travel to the guest", at)
	}
	if p.ExecCPUAffinity != nil {
		r.add("%s.execCPUAffinity names the host's CPUs and does not travel to the guest", at)
	}
	r.labels(at, p)
	out := &agent.Process{
		Terminal: p.Terminal,
		User: &agent.User{
			UID: p.User.UID, GID: p.User.GID,
			AdditionalGids: slices.Clone(p.User.AdditionalGids), Username: p.User.Username,
		},
		Args: slices.Clone(p.Args), Env: lastOfEach(p.Env), Cwd: shortest(p.Cwd),
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if b := p.ConsoleSize; b != nil {
		out.ConsoleSize = &agent.Box{Height: uint32(b.Height), Width: uint32(b.Width)} //nolint:gosec // a terminal's size
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &agent.LinuxCapabilities{
			Bounding: slices.Clone(c.Bounding), Effective: slices.Clone(c.Effective),
			Inheritable: slices.Clone(c.Inheritable), Permitted: slices.Clone(c.Permitted),
			Ambient: slices.Clone(c.Ambient),
		}
	}
	for _, l := range MergeRlimits(p.Rlimits, defaults) {
		out.Rlimits = append(out.Rlimits, &agent.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	if p.OOMScoreAdj != nil {
		out.OOMScoreAdj = int64(*p.OOMScoreAdj)
	}
	return out
}

// lastOfEach keeps of several settings of one variable the last, in the first one's place: so does a runtime that sets
// them one after the other. containerd's CRI lists a variable twice that both the image and the pod set.
func lastOfEach(env []string) (out []string) {
	at := map[string]int{}
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// shortest is a directory without what changes nothing, such as the slash at the end of an image's working directory.
// Where ".." is, a symbolic link may stand before it.
func shortest(dir string) string {
	if dir == "" || slices.Contains(strings.Split(dir, "/"), "..") {
		return dir
	}
	return path.Clean(dir)
}

// zeroBytes refuses what execve(2) cannot pass on: the rest would be cut off.
func (r *refusals) zeroBytes(at string, p *specs.Process) {
	for _, list := range []struct {
		name  string
		words []string
	}{{"args", p.Args}, {"env", p.Env}} {
		for i, w := range list.words {
			if strings.ContainsRune(w, 0) {
				r.add("%s.%s[%d] holds a zero byte, which no program can get", at, list.name, i)
			}
		}
	}
	if strings.ContainsRune(p.Cwd, 0) {
		r.add("%s.cwd holds a zero byte", at)
	}
}

// defaultProfiles are AppArmor profiles that engines set on every container of a host with AppArmor.
var defaultProfiles = []string{"", "unconfined", "docker-default", "cri-containerd.apparmor.d", "crio-default"}

// labels drops the labels of the host's security modules that engines set by default: they confine a
// container against the host, which is what the VM does here. One that somebody chose is refused.
func (r *refusals) labels(at string, p *specs.Process) {
	a := p.ApparmorProfile
	if !slices.Contains(defaultProfiles, a) && !strings.HasPrefix(a, "containers-default-") {
		r.add("%s.apparmorProfile %q is a profile of the host's kernel and cannot be applied in the VM", at, a)
	}
	if f := strings.Split(p.SelinuxLabel, ":"); p.SelinuxLabel != "" && (len(f) < 3 ||
		!slices.Contains([]string{"container_t", "spc_t", "container_kvm_t", "container_init_t", "svirt_lxc_net_t"}, f[2])) {
		r.add("%s.selinuxLabel %q is a label of the host's kernel and cannot be applied in the VM", at, p.SelinuxLabel)
	}
}
