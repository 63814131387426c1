// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const shm = "/dev/shm"

// etcFiles are the files that a sandboxer provides for the pod's containers: by the name in the bundle,
// the path in the container. Where the sandbox is a pause container, containerd makes them.
var etcFiles = []struct{ name, path string }{
	{"hostname", "/etc/hostname"},
	{"hosts", "/etc/hosts"},
	{"resolv.conf", "/etc/resolv.conf"},
}

// writeFiles makes them in the bundle.
func writeFiles(bundle string, c podConfig) error {
	hostname := c.hostname
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("find a host name for the sandbox: %w", err)
		}
	}
	hosts, err := hostFile("/etc/hosts")
	if err != nil {
		return err
	}
	var resolv []byte
	if c.dns != nil {
		resolv = []byte(c.dns.resolvConf())
	} else if resolv, err = hostFile("/etc/resolv.conf"); err != nil {
		return err
	}
	var errs []error
	for name, data := range map[string][]byte{"hostname": []byte(hostname + "\n"), "hosts": hosts, "resolv.conf": resolv} {
		errs = append(errs, os.WriteFile(filepath.Join(bundle, name), data, 0o644)) // for everybody in the container
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write the sandbox's files: %w", err)
	}
	return nil
}

// hostFile reads a file of the host that need not exist.
func hostFile(name string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the sandbox takes over the host's file: %w", err)
	}
	return data, nil
}

func (d *dnsConfig) resolvConf() string {
	var b strings.Builder
	if len(d.searches) > 0 {
		b.WriteString("search " + strings.Join(d.searches, " ") + "\n")
	}
	for _, s := range d.servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(d.options) > 0 {
		b.WriteString("options " + strings.Join(d.options, " ") + "\n")
	}
	return b.String()
}

// amender completes the specifications of the sandbox's containers: the files of /etc that they do
// not bring themselves, and the pod's shared memory in place of one of their own.
func amender(bundle string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		mode := "rw"
		if s.Root != nil && s.Root.Readonly {
			mode = "ro"
		}
		for _, f := range etcFiles {
			if !mounted(s, f.path) {
				s.Mounts = append(s.Mounts, specs.Mount{
					Destination: f.path, Source: filepath.Join(bundle, f.name), Type: "bind",
					Options: []string{"rbind", "rprivate", mode},
				})
			}
		}
		pod := specs.Mount{Destination: shm, Source: shm, Type: "bind", Options: []string{"rbind", "rprivate", "rw"}}
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == shm })
		switch {
		case i < 0:
			s.Mounts = append(s.Mounts, pod)
		case s.Mounts[i].Type == "tmpfs": // the default of a container that is alone
			s.Mounts[i] = pod
		}
	}
}

func mounted(s *specs.Spec, at string) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == at })
}
