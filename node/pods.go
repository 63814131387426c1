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
	PID       int    `json:"pid"`
	Version   string `json:"version"` // hash
}

// String names the pod for messages.
func (p Pod) String() string {
	return fmt.Sprintf("%s (namespace %s, shim %d, version %s)", p.ID, p.Namespace, p.PID, p.Version)
}

// RunningPods finds the shims of all versions below a prefix, whoever has started them.
func RunningPods(prefix string) ([]Pod, error) {
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
