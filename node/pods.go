// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Pod is a running shim, and with it a pod.
type Pod struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	PID       int    `json:"pid"`     // of the shim; 0: it is dead
	Version   string `json:"version"` // hash
}

// String names the pod for messages.
func (p Pod) String() string {
	if p.PID == 0 {
		return fmt.Sprintf("%s (namespace %s, its shim is dead, version %s)", p.ID, p.Namespace, p.Version)
	}
	return fmt.Sprintf("%s (namespace %s, shim %d, version %s)", p.ID, p.Namespace, p.PID, p.Version)
}

// bundles are where containerds keep the bundles of pods; the file names the shim that cleans up after a pod.
var bundles = []string{
	"/run/containerd/io.containerd.runtime.v2.task/*/*/shim-binary-path",
	"/run/k3s/containerd/io.containerd.runtime.v2.task/*/*/shim-binary-path",
	"/run/k0s/containerd/io.containerd.runtime.v2.task/*/*/shim-binary-path",
	"/run/docker/containerd/daemon/io.containerd.runtime.v2.task/*/*/shim-binary-path",
	"/var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/*/*/shim-binary-path",
}

// RunningPods finds the shims of all versions below a prefix, whoever has started them, and the pods whose shim was
// killed: their containerd needs its program to clean up.
func RunningPods(prefix string) ([]Pod, error) {
	pods, err := runningShims(prefix)
	if err != nil {
		return nil, err
	}
	for _, pattern := range bundles {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if p, ok := bundlePod(prefix, f); ok && !slices.ContainsFunc(pods, p.sameAs) {
				pods = append(pods, p)
			}
		}
	}
	return pods, nil
}

func (p Pod) sameAs(o Pod) bool { return p.ID == o.ID && p.Namespace == o.Namespace }

// bundlePod reads the name of a bundle's shim.
func bundlePod(prefix, file string) (Pod, bool) {
	shim, err := os.ReadFile(file)
	if err != nil {
		return Pod{}, false // it has ended
	}
	path := strings.TrimSpace(string(shim))
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	version, ok := versionOf(prefix, path)
	dir := filepath.Dir(file)
	return Pod{ID: filepath.Base(dir), Namespace: filepath.Base(filepath.Dir(dir)), Version: version}, ok
}

// runningShims finds processes.
func runningShims(prefix string) ([]Pod, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	pods := []Pod{}
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err != nil {
			continue // it has ended, or is a thread of the kernel
		}
		version, ok := versionOf(prefix, strings.TrimSuffix(exe, " (deleted)"))
		if !ok {
			continue
		}
		args, err := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
		if err != nil {
			continue
		}
		p := Pod{Version: version}
		if p.PID, err = strconv.Atoi(filepath.Base(filepath.Dir(link))); err != nil {
			return nil, err
		}
		words := strings.Split(string(bytes.TrimRight(args, "\x00")), "\x00")
		p.ID, p.Namespace = argument(words, "-id"), argument(words, "-namespace")
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b Pod) int { return a.PID - b.PID })
	return pods, nil
}

// versionOf returns the version whose shim a path is.
func versionOf(prefix, exe string) (string, bool) {
	rest, ok := strings.CutPrefix(exe, filepath.Join(prefix, "versions")+"/")
	version, program, _ := strings.Cut(rest, "/")
	version = strings.TrimSuffix(strings.TrimPrefix(version, "."), ".coco-old") // one that is being removed
	return version, ok && program == Shim
}

func argument(words []string, name string) string {
	if i := slices.Index(words, name); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return "?"
}
