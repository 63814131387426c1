// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/wire"
)

// configType is what CRI sends as the sandbox's options: the whole description of the pod.
const configType = "runtime.v1.PodSandboxConfig"

// nodeMode is NamespaceMode_NODE: the host's namespace.
const nodeMode = 2

// podConfig has the fields that a sandbox needs of runtime.v1.PodSandboxConfig (k8s.io/cri-api,
// pkg/apis/runtime/v1/api.proto). It is read field by field: the generated package weighs a megabyte.
type podConfig struct {
	name, uid, namespace string
	hostname             string
	logDirectory         string
	dns                  *dnsConfig // nil: the host's
	annotations          map[string]string
	cgroupParent         string
	network, pid, ipc    uint64 // NamespaceMode
	sysctls              map[string]string
	overhead, resources  *resources // nil: not stated
}

type dnsConfig struct{ servers, searches, options []string }

type resources struct{ period, quota, shares, memory int64 }

func readResources(d *wire.Reader, f wire.Fields, n protowire.Number) *resources {
	r, ok := d.Sub(f, n)
	if !ok {
		return nil
	}
	return &resources{
		period: int64(r.Number(1)), quota: int64(r.Number(2)), //nolint:gosec // int64 on the wire
		shares: int64(r.Number(3)), memory: int64(r.Number(4)), //nolint:gosec // likewise
	}
}

// decodeConfig reads the sandbox's options. None are fine: a client that is not CRI may want just a VM.
func decodeConfig(typeURL string, data []byte) (podConfig, error) {
	switch name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]; name {
	case configType:
	case "":
		return podConfig{}, nil
	default:
		return podConfig{}, fmt.Errorf("sandbox options of type %q where %s is expected: %w", typeURL, configType,
			errdefs.ErrInvalidArgument)
	}
	var d wire.Reader
	f := d.Message(data)
	c := podConfig{hostname: f.Text(2), logDirectory: f.Text(3), annotations: d.Map(f, 7)}
	if m, ok := d.Sub(f, 1); ok {
		c.name, c.uid, c.namespace = m.Text(1), m.Text(2), m.Text(3)
	}
	if m, ok := d.Sub(f, 4); ok {
		c.dns = &dnsConfig{servers: m.Texts(1), searches: m.Texts(2), options: m.Texts(3)}
	}
	if m, ok := d.Sub(f, 8); ok {
		c.cgroupParent, c.sysctls = m.Text(1), d.Map(m, 3)
		c.overhead, c.resources = readResources(&d, m, 4), readResources(&d, m, 5)
		if sc, ok := d.Sub(m, 2); ok {
			if ns, ok := d.Sub(sc, 1); ok {
				c.network, c.pid, c.ipc = ns.Number(1), ns.Number(2), ns.Number(3)
			}
		}
	}
	if d.Err != nil {
		return podConfig{}, fmt.Errorf("sandbox options: %w: %w", d.Err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// spec describes the sandbox as the spec of a pause container would: with the same annotations, so that
// the VM gets the same shape by either way.
func (c podConfig) spec(id, netns string) *specs.Spec {
	s := &specs.Spec{Version: specs.Version, Hostname: c.hostname, Annotations: map[string]string{}, Linux: &specs.Linux{
		CgroupsPath: cgroupsPath(c.cgroupParent, id), Sysctl: c.sysctls,
	}}
	for k, v := range c.annotations {
		s.Annotations[k] = v
	}
	for k, v := range map[string]string{
		contract.CRIContainerType: "sandbox", contract.CRISandboxID: id,
		contract.CRISandboxName: c.name, contract.CRISandboxUID: c.uid, contract.CRISandboxNamespace: c.namespace,
		contract.CRISandboxLogDirectory: c.logDirectory,
	} {
		s.Annotations[k] = v
	}
	if r := c.resources; r != nil {
		for k, v := range map[string]int64{
			contract.CRISandboxCPUPeriod: r.period, contract.CRISandboxCPUQuota: r.quota,
			contract.CRISandboxCPUShares: r.shares, contract.CRISandboxMemory: r.memory,
		} {
			s.Annotations[k] = strconv.FormatInt(v, 10)
		}
	}
	// Without one of these the pod is refused, with the reason.
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UTSNamespace}}
	for _, ns := range []struct {
		mode uint64
		ns   specs.LinuxNamespace
	}{
		{c.network, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns}},
		{c.pid, specs.LinuxNamespace{Type: specs.PIDNamespace}},
		{c.ipc, specs.LinuxNamespace{Type: specs.IPCNamespace}},
	} {
		if ns.mode != nodeMode {
			s.Linux.Namespaces = append(s.Linux.Namespaces, ns.ns)
		}
	}
	return s
}

// cgroupsPath is the OCI path of the sandbox in its pod's group, as containerd's CRI writes it: a slice
// is systemd's.
func cgroupsPath(parent, id string) string {
	switch {
	case parent == "":
		return ""
	case strings.HasSuffix(path.Base(parent), ".slice"):
		return path.Base(parent) + ":cri-containerd:" + id
	default:
		return path.Join(parent, id)
	}
}
