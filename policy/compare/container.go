// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// Container compares a whole request with a container of the policy.
func (d *Diffs) Container(p *policy.Policy, c *policy.Container, req *pb.CreateContainerRequest, box *Pod) {
	cid, oci := req.GetContainerId(), req.GetOCI()
	Fixed(d, "exec_id", cid, req.GetExecId())
	Fixed(d, "string_user", false, req.GetStringUser() != nil)
	Fixed(d, "shared_mounts", 0, len(req.GetSharedMounts()))
	d.process(&c.Process, oci.GetProcess())
	d.annotations(c.Annotations, oci.GetAnnotations())
	paired := d.mounts(c.Mounts, oci.GetMounts())
	want := d.sources(p, cid, paired, req.GetStorages())
	if !d.Early {
		d.Storages(unique(append(want, rootStorages(c, cid, onTmpfs(cid, req.GetStorages()))...)), req.GetStorages())
		d.devices(c.Disks, req.GetDevices())
		d.pids(c, req, box)
	}
	Fixed(d, "OCI.Root.Path", contract.Rootfs(cid), oci.GetRoot().GetPath())
	Same(d, "OCI.Root.Readonly", "readonlyRootfs", c.ReadonlyRfs, oci.GetRoot().GetReadonly())
	hostname := ""
	if c.Hostname {
		hostname = box.Hostname
	}
	Fixed(d, "OCI.Hostname", hostname, oci.GetHostname())
	if v := oci.GetVersion(); len(v) > 32 || strings.Trim(v, "0123456789.-+abcdefghijklmnopqrstuvwxyz") != "" {
		d.Add("OCI.Version", "a version", Quote(v), "")
	}
	Fixed(d, "OCI.Hooks", false, oci.GetHooks() != nil)
	Fixed(d, "OCI.Solaris", false, oci.GetSolaris() != nil)
	Fixed(d, "OCI.Windows", false, oci.GetWindows() != nil)
	d.linux(&c.Linux, cid, oci.GetLinux())
	if !c.Allow.Stdin && req.GetStdinPort() != 0 {
		d.Add("stdin_port", "none: the capability stdin is closed", "a stream", "allow.stdin = true")
	}
}

func (d *Diffs) annotations(want []policy.Annotation, got map[string]string) {
	const field = "OCI.Annotations"
	seen := map[string]bool{}
	for _, a := range want {
		value, ok := got[a.Key]
		switch {
		case !ok && !a.Optional:
			d.Add(Key(field, a.Key), d.Wanted(a.Value), "none", Key("annotations", a.Key)+".optional = true")
		case ok && !d.Allows(a.Value, value):
			d.Add(Key(field, a.Key), d.Wanted(a.Value), hidden(value), Key("annotations", a.Key)+" with this text")
		}
		seen[a.Key] = true
	}
	for _, k := range sortedKeys(got) {
		if !seen[k] {
			d.Add(Key(field, k), "none", "a text of "+Show(len(got[k]))+" bytes", "annotations with an entry for "+Quote(k))
		}
	}
}

// devices compares raw block volumes.
func (d *Diffs) devices(want []string, got []*pb.Device) {
	var paths []string
	for i, g := range got {
		at := Index("devices", i)
		paths = append(paths, g.GetContainerPath())
		Fixed(d, at+".id", "", g.GetId())
		d.List(at+".options", "", nil, g.GetOptions())
		if !slices.Contains(disks, g.GetType()) {
			d.Add(at+".type", "one of "+QuoteAll(disks), Quote(g.GetType()), "")
		}
	}
	d.Set("devices", "disks", want, paths)
}

// pids compares which processes a container sees.
func (d *Diffs) pids(c *policy.Container, req *pb.CreateContainerRequest, box *Pod) {
	of := ""
	if c.Linux.PIDs != "" && c.Linux.PIDs != policy.PodPIDs {
		of = box.Live[c.Linux.PIDs]
		if of == "" {
			of = "(no container " + c.Linux.PIDs + " lives)"
		}
	}
	Same(d, "sandbox_pidns", "linux.pids", c.Linux.PIDs == policy.PodPIDs, req.GetSandboxPidns())
	Fixed(d, "pid_container", of, req.GetPidContainer())
}

func (d *Diffs) linux(want *policy.Linux, cid string, got *pb.Linux) {
	const at = "OCI.Linux"
	var types []string
	for i, n := range got.GetNamespaces() {
		types = append(types, n.GetType())
		Fixed(d, Index(at+".Namespaces", i)+".Path", "", n.GetPath())
	}
	d.Set(at+".Namespaces", "linux.namespaces", want.Namespaces, types)
	d.Texts(at+".Sysctl", "linux.sysctls", want.Sysctls, got.GetSysctl())
	d.paths(at+".MaskedPaths", "linux.masked", want.Masked, got.GetMaskedPaths())
	d.paths(at+".ReadonlyPaths", "linux.readonly", want.Readonly, got.GetReadonlyPaths())
	d.nodes(want.Devices, got.GetDevices())
	d.resources(want.DeviceRule, got.GetResources())
	if digest := policy.SeccompDigest(got.GetSeccomp()); !slices.Contains(want.Seccomp, digest) {
		d.Add(at+".Seccomp", "one of "+QuoteAll(want.Seccomp), Quote(digest), "linux.seccomp with "+Quote(digest))
	}
	Same(d, at+".RootfsPropagation", "linux.propagation", want.Propagation, got.GetRootfsPropagation())
	Fixed(d, at+".CgroupsPath", contract.CgroupBase+cid, got.GetCgroupsPath())
	Fixed(d, at+".UIDMappings", 0, len(got.GetUIDMappings()))
	Fixed(d, at+".GIDMappings", 0, len(got.GetGIDMappings()))
	Fixed(d, at+".MountLabel", "", got.GetMountLabel())
	Fixed(d, at+".IntelRdt", false, got.GetIntelRdt() != nil)
}

func (d *Diffs) nodes(want []policy.Device, got []*pb.LinuxDevice) {
	var w, g []string
	for _, n := range want {
		w = append(w, Show(n))
	}
	for _, n := range got {
		g = append(g, Show(policy.Device{
			Path: n.GetPath(), Type: n.GetType(), Major: n.GetMajor(), Minor: n.GetMinor(), Mode: n.GetFileMode(),
			UID: n.GetUID(), GID: n.GetGID(),
		}))
	}
	d.Set("OCI.Linux.Devices", "linux.devices", w, g)
}

// resources compares the rules for devices and refuses what is no limit of memory, CPU or processes.
func (d *Diffs) resources(want []policy.DeviceRule, got *pb.LinuxResources) {
	const at = "OCI.Linux.Resources"
	var w, g []string
	for _, r := range want {
		w = append(w, Show(r))
	}
	for _, r := range got.GetDevices() {
		g = append(g, Show(policy.DeviceRule{
			Allow: r.GetAllow(), Type: r.GetType(), Major: r.GetMajor(), Minor: r.GetMinor(), Access: r.GetAccess(),
		}))
	}
	d.List(at+".Devices", "linux.deviceRules", w, g)
	d.Limits(at, got)
}

// Limits admits limits of memory, CPU and processes, with which the host can slow a container down or end it, and no
// others.
func (d *Diffs) Limits(at string, got *pb.LinuxResources) {
	Fixed(d, at+".BlockIO", false, got.GetBlockIO() != nil)
	Fixed(d, at+".HugepageLimits", 0, len(got.GetHugepageLimits()))
	Fixed(d, at+".Network", false, got.GetNetwork() != nil)
	for _, k := range sortedKeys(got.GetUnified()) {
		controller, _, _ := strings.Cut(k, ".")
		if !slices.Contains([]string{"memory", "cpu", "pids"}, controller) {
			d.Add(Key(at+".Unified", k), "a limit of memory, cpu or pids", "it", "")
		}
	}
}
