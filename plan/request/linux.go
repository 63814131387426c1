// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package request

import (
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
)

func (r *refusals) linux(in Input, s *specs.Spec) (*agent.Linux, bool) {
	l := s.Linux
	if len(l.NetDevices) > 0 {
		r.add("linux.netDevices: a device of the host cannot be moved into the VM's namespace")
	}
	if l.IntelRdt != nil {
		r.add("linux.intelRdt: cache allocation of the host is not available in the VM")
	}
	if l.MemoryPolicy != nil {
		r.add("linux.memoryPolicy does not travel to the guest")
	}
	if p := l.Personality; p != nil && (p.Domain != specs.PerLinux || len(p.Flags) > 0) {
		r.add("linux.personality %q does not travel to the guest", p.Domain)
	}
	if len(l.TimeOffsets) > 0 {
		r.add("linux.timeOffsets does not travel to the guest")
	}
	namespaces, pidns := r.namespaces(l)
	devices, resources := numberDisks(l, in.Disks)
	sysctl := maps.Clone(l.Sysctl)
	if s.Domainname != "" {
		// The protocol has no field for it; the sysctl is the same thing.
		if sysctl == nil {
			sysctl = map[string]string{}
		}
		sysctl["kernel.domainname"] = s.Domainname
	}
	return &agent.Linux{
		Sysctl:            sysctl,
		Resources:         r.resources(resources),
		CgroupsPath:       contract.CgroupBase + in.ID,
		Namespaces:        namespaces,
		Devices:           r.devices(devices, allDevices(resources), in.Disks),
		Seccomp:           r.seccomp(l.Seccomp),
		RootfsPropagation: l.RootfsPropagation,
		MaskedPaths:       slices.DeleteFunc(slices.Clone(l.MaskedPaths), ofHostCPU),
		ReadonlyPaths:     slices.Clone(l.ReadonlyPaths),
	}, pidns
}

// ofHostCPU says whether a masked path belongs to a CPU of the host (/sys/devices/system/cpu/cpu3/thermal_throttle).
// Kubelet and containerd list one for each CPU of the node. The VM has other CPUs, without such files, and a policy
// could not name the paths.
func ofHostCPU(p string) bool {
	ok, err := path.Match("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle", p)
	return err == nil && ok
}

// namespaces keeps mount, ipc and uts, without paths: the agent's sandbox has its own. Network is the
// VM's; pid and cgroup are made by the agent. A namespace that is absent would be the host's, which
// a VM cannot give.
func (r *refusals) namespaces(l *specs.Linux) (out []*agent.LinuxNamespace, sandboxPidNS bool) {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		seen[ns.Type] = true
		switch ns.Type {
		case specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace:
			out = append(out, &agent.LinuxNamespace{Type: string(ns.Type)})
		case specs.PIDNamespace:
			sandboxPidNS = ns.Path != ""
		case specs.NetworkNamespace, specs.CgroupNamespace:
		case specs.TimeNamespace:
			// Without offsets (refused above) a time namespace changes nothing.
		case specs.UserNamespace:
			r.add("linux.namespaces: user namespaces are not supported; root in the container is root of the VM only")
		default:
			r.add("linux.namespaces: unknown type %q", ns.Type)
		}
	}
	for _, ns := range []specs.LinuxNamespaceType{
		specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace,
		specs.PIDNamespace,
	} {
		if !seen[ns] {
			r.add("linux.namespaces: no %s namespace, so the host's is asked for, which a VM cannot give", ns)
		}
	}
	if len(l.UIDMappings)+len(l.GIDMappings) > 0 && !seen[specs.UserNamespace] {
		r.add("linux.uidMappings: user namespaces are not supported")
	}
	return out, sandboxPidNS
}

// standardDevices are the devices that every runtime makes in every container: a specification that lists
// them needs no device of the host.
var standardDevices = map[string][2]int64{
	"/dev/null": {1, 3}, "/dev/zero": {1, 5}, "/dev/full": {1, 7}, "/dev/random": {1, 8},
	"/dev/urandom": {1, 9}, "/dev/tty": {5, 0}, "/dev/console": {5, 1}, "/dev/ptmx": {5, 2},
}

// guestDevices are character devices of the kernel itself, with the same numbers on guest and host. The container gets
// the guest's, at any path.
var guestDevices = map[[2]int64]bool{
	{10, 200}: true, // /dev/net/tun
	{10, 229}: true, // /dev/fuse
}

// allDevices says whether a container may use every device there is, which is how engines say that it
// is privileged. They list all devices of the host as well; privileged inside the VM means the VM's,
// which the agent gives. A device that somebody chose comes with a rule of its own.
func allDevices(res *specs.LinuxResources) bool {
	return res != nil && slices.ContainsFunc(res.Devices, func(d specs.LinuxDeviceCgroup) bool {
		return d.Allow && (d.Type == "" || d.Type == "a") && every(d.Major) && every(d.Minor) &&
			strings.Contains(d.Access, "m")
	})
}

func every(number *int64) bool { return number == nil || *number == -1 }

func (r *refusals) devices(in []specs.LinuxDevice, all bool, disks map[string]bool) []*agent.LinuxDevice {
	var out []*agent.LinuxDevice
	for _, d := range in {
		disk := d.Type == "b" && disks[d.Path]
		if !all && !disk && d.Type == "c" && guestDevices[[2]int64{d.Major, d.Minor}] {
			out = append(out, guestDevice(d))
			continue
		}
		if _, ok := standardDevices[d.Path]; all && !ok && !disk {
			continue
		}
		if want, ok := standardDevices[d.Path]; !disk && (!ok || want != [2]int64{d.Major, d.Minor}) {
			r.add("linux.devices: %s (%s %d:%d) is a device of the host and cannot be given into a VM", d.Path, d.Type,
				d.Major, d.Minor)
			continue
		}
		out = append(out, guestDevice(d))
	}
	return out
}

// numberDisks gives the disks of a container, and the rules for them, numbers by their order: 0:0, 0:1 and so on, of
// which the kernel makes no block device. The agent puts those of the guest's disks in their place. The numbers of the
// host mean nothing to the guest, and no policy could name them.
func numberDisks(l *specs.Linux, disks map[string]bool) ([]specs.LinuxDevice, *specs.LinuxResources) {
	devices, numbers := slices.Clone(l.Devices), map[[2]int64]int64{}
	for i := range devices {
		d := &devices[i]
		if d.Type != "b" || !disks[d.Path] {
			continue
		}
		of := [2]int64{d.Major, d.Minor}
		n, known := numbers[of]
		if !known {
			n = int64(len(numbers))
			numbers[of] = n
		}
		d.Major, d.Minor = 0, n
	}
	if len(numbers) == 0 || l.Resources == nil {
		return devices, l.Resources
	}
	res := *l.Resources
	res.Devices = slices.Clone(res.Devices)
	for i := range res.Devices {
		r := &res.Devices[i]
		if r.Type != "b" && r.Type != "" || r.Major == nil || r.Minor == nil {
			continue
		}
		if n, ok := numbers[[2]int64{*r.Major, *r.Minor}]; ok {
			r.Major, r.Minor = new(int64), &n
		}
	}
	return devices, &res
}

func guestDevice(d specs.LinuxDevice) *agent.LinuxDevice {
	g := &agent.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: 0o666}
	if d.FileMode != nil {
		g.FileMode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		g.UID = *d.UID
	}
	if d.GID != nil {
		g.GID = *d.GID
	}
	return g
}

// seccompDefaultErrno is the error of SCMP_ACT_ERRNO without a number, as in other runtimes: EPERM.
const seccompDefaultErrno = 1

// Seccomp returns a filter as Convert sends it.
func Seccomp(s *specs.LinuxSeccomp) (*agent.LinuxSeccomp, error) {
	var r refusals
	return r.seccomp(s), r.err("any")
}

func (r *refusals) seccomp(s *specs.LinuxSeccomp) *agent.LinuxSeccomp {
	if s == nil {
		return nil
	}
	if s.ListenerPath != "" || s.DefaultAction == specs.ActNotify {
		r.add("linux.seccomp.listenerPath: a listener on the host cannot serve a process in the VM")
	}
	out := &agent.LinuxSeccomp{DefaultAction: string(s.DefaultAction)}
	if n := s.DefaultErrnoRet; n != nil && *n != seccompDefaultErrno {
		out.DefaultErrnoRet = new(uint32(*n)) //nolint:gosec // an errno
	}
	for _, a := range s.Architectures {
		out.Architectures = append(out.Architectures, string(a))
	}
	for _, f := range s.Flags {
		out.Flags = append(out.Flags, string(f))
	}
	for _, c := range s.Syscalls {
		if c.Action == specs.ActNotify {
			r.add("linux.seccomp: %s for %v: a listener on the host cannot serve a process in the VM", c.Action, c.Names)
		}
		out.Syscalls = append(out.Syscalls, syscall(c))
	}
	return out
}

func syscall(c specs.LinuxSyscall) *agent.LinuxSyscall {
	g := &agent.LinuxSyscall{Names: slices.Clone(c.Names), Action: string(c.Action)}
	if c.ErrnoRet != nil {
		g.ErrnoRet = &agent.LinuxSyscall_Errnoret{Errnoret: uint32(*c.ErrnoRet)} //nolint:gosec // an errno
	}
	for _, a := range c.Args {
		g.Args = append(g.Args, &agent.LinuxSeccompArg{
			Index: uint64(a.Index), Value: a.Value, ValueTwo: a.ValueTwo,
			Op: string(a.Op),
		})
	}
	return g
}

// resources keeps the limits that the guest's cgroups can enforce. Settings that name the host's devices, CPUs
// or memory nodes are refused or, where they only place the container on the host, left out.
func (r *refusals) resources(in *specs.LinuxResources) *agent.LinuxResources {
	if in == nil {
		return nil
	}
	out := &agent.LinuxResources{Memory: r.memory(in.Memory), CPU: r.cpu(in.CPU)}
	for _, d := range in.Devices {
		g := &agent.LinuxDeviceCgroup{Allow: d.Allow, Type: d.Type, Major: -1, Minor: -1, Access: d.Access}
		if d.Major != nil {
			g.Major = *d.Major
		}
		if d.Minor != nil {
			g.Minor = *d.Minor
		}
		out.Devices = append(out.Devices, g)
	}
	if in.Pids != nil && in.Pids.Limit != nil {
		out.Pids = &agent.LinuxPids{Limit: *in.Pids.Limit}
	}
	for _, h := range in.HugepageLimits {
		if h.Limit != 0 {
			r.add("linux.resources.hugepageLimits: the VM has no huge pages of %s to give", h.Pagesize)
		}
	}
	if n := in.Network; n != nil && (n.ClassID != nil && *n.ClassID != 0 || len(n.Priorities) > 0) {
		r.add("linux.resources.network: packet classes of the host do not exist in the VM")
	}
	if len(in.Rdma) > 0 {
		r.add("linux.resources.rdma: there is no such device in the VM")
	}
	out.Unified = r.unified(in.Unified)
	r.blockIO(in.BlockIO)
	return out
}

// unified copies settings of the unified hierarchy, which the guest always has, except those that name the
// host's CPUs, memory nodes and disks.
func (r *refusals) unified(in map[string]string) map[string]string {
	var out map[string]string
	for _, k := range sortedKeys(in) {
		controller, _, ok := strings.Cut(k, ".")
		switch {
		case !ok || strings.Contains(k, "/") || controller == "cgroup":
			r.add("linux.resources.unified %q is no limit", k)
		case controller == "cpuset":
			// it only places the container on the host, as cpu.cpus does
		case controller == "io" && k != "io.weight", controller == "rdma", controller == "misc":
			r.add("linux.resources.unified %q names devices of the host, which the VM does not have", k)
		default:
			if out == nil {
				out = map[string]string{}
			}
			out[k] = in[k]
		}
	}
	return out
}

func (r *refusals) memory(m *specs.LinuxMemory) *agent.LinuxMemory {
	if m == nil {
		return nil
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		r.add("linux.resources.memory.disableOOMKiller: cgroup v2 in the VM cannot do it")
	}
	if m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate {
		r.add("linux.resources.memory.checkBeforeUpdate does not travel to the guest")
	}
	return &agent.LinuxMemory{Limit: value(m.Limit), Reservation: value(m.Reservation), Swap: value(m.Swap)}
}

func (r *refusals) cpu(c *specs.LinuxCPU) *agent.LinuxCPU {
	if c == nil {
		return nil
	}
	if value(c.RealtimeRuntime) != 0 {
		r.add("linux.resources.cpu.realtimeRuntime: cgroup v2 in the VM cannot do it")
	}
	if value(c.Burst) != 0 {
		r.add("linux.resources.cpu.burst does not travel to the guest")
	}
	if value(c.Idle) != 0 {
		r.add("linux.resources.cpu.idle does not travel to the guest")
	}
	return &agent.LinuxCPU{Shares: value(c.Shares), Quota: value(c.Quota), Period: value(c.Period)}
}

func (r *refusals) blockIO(b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	if len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(
		b.ThrottleWriteIOPSDevice) > 0 {
		r.add("linux.resources.blockIO names devices of the host, which the VM does not have")
	}
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
