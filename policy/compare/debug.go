// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"slices"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
)

// Debug is a container that a policy with the capability debug admits though it declares none like it: the request's
// own image, process, environment, user and capabilities. It has no device nodes and no rules for them, no disks, no
// shared mounts, only the usual file systems, and as sources of mounts only volumes of the pod and copies for this
// container. Container compares the request with it.
func Debug(req *pb.CreateContainerRequest, box *Pod, volumes map[string]string) *policy.Container {
	oci := req.GetOCI()
	l := oci.GetLinux()
	c := &policy.Container{
		Name: oci.GetAnnotations()[contract.CRIContainerName], Kind: policy.App, Restart: policy.Never,
		Image: policy.Image{Layers: rootLayers(req)}, Process: asIs(oci.GetProcess()),
		Linux: policy.Linux{
			Sysctls: l.GetSysctl(), Masked: policy.Paths{Required: l.GetMaskedPaths()},
			Readonly:   policy.Paths{Required: l.GetReadonlyPaths()},
			DeviceRule: []policy.DeviceRule{{Major: -1, Minor: -1, Access: "rwm"}},
			Seccomp:    []string{policy.SeccompDigest(l.GetSeccomp())},
		},
		ReadonlyRfs: oci.GetRoot().GetReadonly(), Hostname: oci.GetHostname() != "",
		Allow: policy.Capabilities{Exec: policy.Exec{Any: true}, Logs: true, Stdin: true},
	}
	for _, n := range l.GetNamespaces() {
		c.Linux.Namespaces = append(c.Linux.Namespaces, n.GetType())
	}
	if req.GetSandboxPidns() {
		c.Linux.PIDs = policy.PodPIDs
	}
	for name, id := range box.Live { // one live container has an id
		if id == req.GetPidContainer() {
			c.Linux.PIDs = name
		}
	}
	for key, text := range oci.GetAnnotations() {
		c.Annotations = append(c.Annotations, policy.Annotation{Key: key, Value: policy.Value{Is: &text}})
	}
	for _, m := range oci.GetMounts() {
		c.Mounts = append(c.Mounts, policy.Mount{
			Destination: m.GetDestination(), Type: m.GetType(), Options: m.GetOptions(),
			Source: debugSource(req.GetContainerId(), m, volumes),
		})
	}
	return c
}

// maxDebug bounds the lists whose entries are compared each with all.
const maxDebug = 1024

// Long refuses a request for Debug with a list that is too long. Lists of other containers are compared with those of
// the policy, which are short.
func Long(req *pb.CreateContainerRequest) *Denial {
	l := req.GetOCI().GetLinux()
	for _, list := range []struct {
		field string
		n     int
	}{
		{"OCI.Linux.MaskedPaths", len(l.GetMaskedPaths())},
		{"OCI.Linux.ReadonlyPaths", len(l.GetReadonlyPaths())},
		{"storages", len(req.GetStorages())},
	} {
		if list.n > maxDebug {
			return &Denial{Code: Value, Field: list.field, Want: "at most " + Show(maxDebug), Got: Show(list.n)}
		}
	}
	return nil
}

// asIs is the process of a request.
func asIs(p *pb.Process) policy.Process {
	u, caps := p.GetUser(), p.GetCapabilities()
	out := policy.Process{
		Args: p.GetArgs(), Cwd: p.GetCwd(), TTY: p.GetTerminal(), NoNewPrivileges: p.GetNoNewPrivileges(),
		User: policy.User{UID: u.GetUID(), GID: u.GetGID(), Groups: u.GetAdditionalGids()},
		Caps: policy.Caps{
			Bounding: caps.GetBounding(), Effective: caps.GetEffective(), Inheritable: caps.GetInheritable(),
			Permitted: caps.GetPermitted(), Ambient: caps.GetAmbient(),
		},
		Rlimits: policy.Rlimits{FromHost: true},
	}
	for _, e := range p.GetEnv() {
		name, text, _ := strings.Cut(e, "=")
		out.Env = append(out.Env, policy.Env{Name: name, Value: policy.Value{Is: &text}})
	}
	return out
}

// rootLayers are the root hashes of the layers that a request's root file system is made of.
func rootLayers(req *pb.CreateContainerRequest) (out []string) {
	for _, s := range req.GetStorages() {
		if s.GetMountPoint() != contract.Rootfs(req.GetContainerId()) {
			continue
		}
		for _, o := range s.GetOptions() {
			if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				for _, dir := range strings.SplitN(dirs, ":", maxDebug) { // further ones are no layer, and denied
					out = append(out, strings.TrimPrefix(dir, contract.LayersDir+"/"))
				}
			}
		}
	}
	return out
}

// debugTypes are the file systems of every container.
var debugTypes = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

func debugSource(cid string, m *pb.Mount, volumes map[string]string) policy.Source {
	bind := slices.ContainsFunc(m.GetOptions(), func(o string) bool { return o == "bind" || o == "rbind" })
	if slices.Contains(debugTypes, m.GetType()) && !bind {
		return policy.Source{Is: &m.Source}
	}
	if m.GetSource() == contract.ShmDir {
		return policy.Source{Shm: true}
	}
	for name, at := range volumes {
		if at == m.GetSource() && at != request.GuestCopy(cid, m.GetDestination()) {
			return policy.Source{Volume: &policy.Use{Name: name}}
		}
	}
	return policy.Source{Copy: &policy.Content{Rule: policy.ContentUnpinned}} // any other place than the copy's is denied
}
