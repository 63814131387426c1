// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/policy"
)

// container compares a whole request with a container of the policy.
func (d *diffs) container(p *policy.Policy, c *policy.Container, req *pb.CreateContainerRequest, box *sandbox) {
	cid, oci := req.GetContainerId(), req.GetOCI()
	fixed(d, "exec_id", cid, req.GetExecId())
	fixed(d, "string_user", false, req.GetStringUser() != nil)
	fixed(d, "shared_mounts", 0, len(req.GetSharedMounts()))
	d.process(&c.Process, oci.GetProcess())
	d.annotations(c.Annotations, oci.GetAnnotations())
	paired := d.mounts(c.Mounts, oci.GetMounts())
	want := d.sources(p, cid, paired, req.GetStorages())
	d.storages(unique(append(want, rootStorages(c, cid, onTmpfs(cid, req.GetStorages()))...)), req.GetStorages())
	d.devices(c.Disks, req.GetDevices())
	d.pids(c, req, box)
	fixed(d, "OCI.Root.Path", contract.Rootfs(cid), oci.GetRoot().GetPath())
	same(d, "OCI.Root.Readonly", "readonlyRootfs", c.ReadonlyRfs, oci.GetRoot().GetReadonly())
	hostname := ""
	if c.Hostname {
		hostname = box.hostname
	}
	fixed(d, "OCI.Hostname", hostname, oci.GetHostname())
	if v := oci.GetVersion(); len(v) > 32 || strings.Trim(v, "0123456789.-+abcdefghijklmnopqrstuvwxyz") != "" {
		d.add("OCI.Version", "a version", quote(v), "")
	}
	fixed(d, "OCI.Hooks", false, oci.GetHooks() != nil)
	fixed(d, "OCI.Solaris", false, oci.GetSolaris() != nil)
	fixed(d, "OCI.Windows", false, oci.GetWindows() != nil)
	d.linux(&c.Linux, cid, oci.GetLinux())
	if !c.Allow.Stdin && req.GetStdinPort() != 0 {
		d.add("stdin_port", "none: the capability stdin is closed", "a stream", "allow.stdin = true")
	}
}

func (d *diffs) annotations(want []policy.Annotation, got map[string]string) {
	const field = "OCI.Annotations"
	seen := map[string]bool{}
	for _, a := range want {
		value, ok := got[a.Key]
		switch {
		case !ok && !a.Optional:
			d.add(key(field, a.Key), d.wanted(a.Value), "none", key("annotations", a.Key)+".optional = true")
		case ok && !d.allows(a.Value, value):
			d.add(key(field, a.Key), d.wanted(a.Value), hidden(value), key("annotations", a.Key)+" with this text")
		}
		seen[a.Key] = true
	}
	for _, k := range sortedKeys(got) {
		if !seen[k] {
			d.add(key(field, k), "none", "a text of "+show(len(got[k]))+" bytes", "annotations with an entry for "+quote(k))
		}
	}
}

// devices compares raw block volumes.
func (d *diffs) devices(want []string, got []*pb.Device) {
	var paths []string
	for i, g := range got {
		at := index("devices", i)
		paths = append(paths, g.GetContainerPath())
		fixed(d, at+".id", "", g.GetId())
		d.list(at+".options", "", nil, g.GetOptions())
		if !slices.Contains(disks, g.GetType()) {
			d.add(at+".type", "one of "+quoteAll(disks), quote(g.GetType()), "")
		}
	}
	d.set("devices", "disks", want, paths)
}

// pids compares which processes a container sees.
func (d *diffs) pids(c *policy.Container, req *pb.CreateContainerRequest, box *sandbox) {
	of := ""
	if c.Linux.PIDs != "" && c.Linux.PIDs != policy.PodPIDs {
		of = box.live[c.Linux.PIDs]
		if of == "" {
			of = "(no container " + c.Linux.PIDs + " lives)"
		}
	}
	same(d, "sandbox_pidns", "linux.pids", c.Linux.PIDs == policy.PodPIDs, req.GetSandboxPidns())
	fixed(d, "pid_container", of, req.GetPidContainer())
}

func (d *diffs) linux(want *policy.Linux, cid string, got *pb.Linux) {
	const at = "OCI.Linux"
	var types []string
	for i, n := range got.GetNamespaces() {
		types = append(types, n.GetType())
		fixed(d, index(at+".Namespaces", i)+".Path", "", n.GetPath())
	}
	d.set(at+".Namespaces", "linux.namespaces", want.Namespaces, types)
	d.texts(at+".Sysctl", "linux.sysctls", want.Sysctls, got.GetSysctl())
	d.paths(at+".MaskedPaths", "linux.masked", want.Masked, got.GetMaskedPaths())
	d.paths(at+".ReadonlyPaths", "linux.readonly", want.Readonly, got.GetReadonlyPaths())
	d.nodes(want.Devices, got.GetDevices())
	d.resources(want.DeviceRule, got.GetResources())
	if digest := policy.SeccompDigest(got.GetSeccomp()); !slices.Contains(want.Seccomp, digest) {
		d.add(at+".Seccomp", "one of "+quoteAll(want.Seccomp), quote(digest), "linux.seccomp with "+quote(digest))
	}
	same(d, at+".RootfsPropagation", "linux.propagation", want.Propagation, got.GetRootfsPropagation())
	fixed(d, at+".CgroupsPath", contract.CgroupBase+cid, got.GetCgroupsPath())
	fixed(d, at+".UIDMappings", 0, len(got.GetUIDMappings()))
	fixed(d, at+".GIDMappings", 0, len(got.GetGIDMappings()))
	fixed(d, at+".MountLabel", "", got.GetMountLabel())
	fixed(d, at+".IntelRdt", false, got.GetIntelRdt() != nil)
}

func (d *diffs) nodes(want []policy.Device, got []*pb.LinuxDevice) {
	var w, g []string
	for _, n := range want {
		w = append(w, show(n))
	}
	for _, n := range got {
		g = append(g, show(policy.Device{
			Path: n.GetPath(), Type: n.GetType(), Major: n.GetMajor(), Minor: n.GetMinor(), Mode: n.GetFileMode(),
			UID: n.GetUID(), GID: n.GetGID(),
		}))
	}
	d.set("OCI.Linux.Devices", "linux.devices", w, g)
}

// resources compares the rules for devices and refuses what is no limit of memory, CPU or processes.
func (d *diffs) resources(want []policy.DeviceRule, got *pb.LinuxResources) {
	const at = "OCI.Linux.Resources"
	var w, g []string
	for _, r := range want {
		w = append(w, show(r))
	}
	for _, r := range got.GetDevices() {
		g = append(g, show(policy.DeviceRule{
			Allow: r.GetAllow(), Type: r.GetType(), Major: r.GetMajor(), Minor: r.GetMinor(), Access: r.GetAccess(),
		}))
	}
	d.list(at+".Devices", "linux.deviceRules", w, g)
	d.limits(at, got)
}

// limits admits limits of memory, CPU and processes, with which the host can slow a container down or end it, and no
// others.
func (d *diffs) limits(at string, got *pb.LinuxResources) {
	fixed(d, at+".BlockIO", false, got.GetBlockIO() != nil)
	fixed(d, at+".HugepageLimits", 0, len(got.GetHugepageLimits()))
	fixed(d, at+".Network", false, got.GetNetwork() != nil)
	for _, k := range sortedKeys(got.GetUnified()) {
		controller, _, _ := strings.Cut(k, ".")
		if !slices.Contains([]string{"memory", "cpu", "pids"}, controller) {
			d.add(key(at+".Unified", k), "a limit of memory, cpu or pids", "it", "")
		}
	}
}
