// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sysctl sets the sysctls that the host names, of which it may name only those of a pod's namespaces.
package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Set sets network sysctls of the guest, whose network namespace is the pod's.
func Set(list map[string]string) error {
	for k, v := range list {
		p, err := File(k)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join("/proc/sys", p), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", k, err)
		}
		_, err = f.WriteString(v)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("sysctl %s: %w", k, err)
		}
	}
	return nil
}

// below is the path of a sysctl below /proc/sys, from both spellings ("net.a.b", "net/a/b").
func below(key string) (string, error) {
	p := key
	if !strings.Contains(key, "/") {
		p = strings.ReplaceAll(key, ".", "/")
	}
	if path.Clean(p) != p || path.IsAbs(p) || strings.Contains(p, "..") {
		return "", fmt.Errorf("sysctl %q: %w", key, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// File is the path of a network sysctl.
func File(key string) (string, error) {
	p, err := below(key)
	if err == nil && !strings.HasPrefix(p, "net/") {
		return "", fmt.Errorf("sysctl %q is not of the network: %w", key, errdefs.ErrInvalidArgument)
	}
	return p, err
}

// ipcSysctls belong to the IPC namespace: ipc_namespaces(7).
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
	"kernel/shm_rmid_forced",
}

// Split separates a pod's sysctls into those of its network, by their keys, and those of the
// namespaces that its containers share, by their paths. Others are the kernel's as a whole, and no
// business of the host's.
func Split(all map[string]string) (network, shared map[string]string, err error) {
	network, shared = map[string]string{}, map[string]string{}
	for k, v := range all {
		p, err := below(k)
		switch {
		case err != nil:
			return nil, nil, err
		case strings.HasPrefix(p, "net/"):
			network[k] = v
		case slices.Contains(ipcSysctls, p), strings.HasPrefix(p, "fs/mqueue/"), p == "kernel/domainname":
			shared[p] = v
		default:
			return nil, nil, fmt.Errorf("sysctl %q is not one of a pod's namespaces: %w", k, errdefs.ErrInvalidArgument)
		}
	}
	return network, shared, nil
}
