// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestWhatContainersMayAsk(t *testing.T) {
	dir := place(t)
	base, file := filepath.Join(dir, "broker.toml"), filepath.Join(dir, "workload.json")
	write(t, base, "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\n"+
		"url = \"https://kbs\"\ncert = \"PEM\"\n'''\n")
	write(t, file, `{"port": 8006, "containers": {"web": {
		"resources": ["kbs:///a/b/c"], "calls": ["token", "evidence"], "exportKey": true, "evidence": "raw"}}}`)
	text, err := genPolicy(t, dir, "--output", "policy", "--initdata", base, "--workload", file)
	must(t, text, err)
	table, err := run(t, text, "show", "-")
	must(t, table, err)
	for _, want := range []string{
		"port 8006", "kbs:///a/b/c", "token evidence, evidence with ANY report data, tokens WITH THE PRIVATE KEY",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("show does not tell %q: %s", want, table)
		}
	}
	lint, err := run(t, text, "lint", "-")
	if err != nil || !strings.Contains(lint, "workload.exportKey is open") || !strings.Contains(lint, "evidence is raw") {
		t.Errorf("lint = %s, %v", lint, err)
	}
	plain, err := genPolicy(t, dir, "--output", "policy")
	must(t, plain, err)
	write(t, filepath.Join(dir, "plain.coco"), plain)
	diff, err := run(t, text, "diff", filepath.Join(dir, "plain.coco"), "-")
	if err == nil || !strings.Contains(diff, "+ containers[web].workload.exportKey: true\n") ||
		!strings.Contains(diff, "+ pod.workloadPort: 8006\n") {
		t.Errorf("diff = %s, %v", diff, err)
	}
}

func TestWorkloadsThatGenRefuses(t *testing.T) {
	dir := place(t)
	file := filepath.Join(dir, "workload.json")
	for text, want := range map[string]string{
		`{"containers": {}}`:                                                "there are no containers",
		`{"containers": {"web": {}}}`:                                       "neither resources nor calls",
		`{"containers": {"other": {"calls": ["info"]}}}`:                    `no pod has a container "other"`,
		`{"containers": {"web": {"calls": ["aael"]}}}`:                      `"aael"; known are`,
		`{"containers": {"web": {"call": ["info"]}}}`:                       "unknown field",
		`{"port": 65536, "containers": {"web": {"calls": ["info"]}}}`:       "port",
		`{"containers": {"web": {"resources": ["kbs:///a/b/*"]}}}`:          "is no",
		`{"containers": {"web": {"resources": ["kbs:///a/b/c"]}}}`:          "names no key broker",
		`{"containers": {"web": {"calls": ["token"]}}}`:                     "names no key broker",
		`{"containers": {"web": {"calls": ["info"], "exportKey": true}}}`:   "exportKey",
		`{"containers": {"web": {"calls": ["info"]}}} {}`:                   "something follows",
		`{"containers": {"web": {"calls": ["info"], "evidence": "bound"}}}`: "evidence",
	} {
		write(t, file, text)
		if out, err := genPolicy(t, dir, "--workload", file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %.80s, %v; want %q", text, out, err, want)
		}
	}
	if _, err := genPolicy(t, dir, "--workload", filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there is accepted")
	}
}
