// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coco-shim/coco/internal/initdata"
)

const (
	aaText  = "[token_configs.kbs]\nurl = \"https://kbs:8080\"\ncert = \"\"\"\nPEM\n\"\"\"\n"
	cdhText = "socket = \"unix:///run/confidential-containers/cdh.sock\"\ncredentials = []\n[kbc]\nname = \"cc_kbc\"\n" +
		"url = \"https://kbs:8080\"\nkbs_cert = \"PEM\"\n"
)

func TestABrokerIsNamedInEitherFile(t *testing.T) {
	want := Broker{URL: "https://kbs:8080", CertPEM: "PEM", Deadline: DefaultDeadline}
	for name, files := range map[string]map[string]string{
		"aa.toml":  {initdata.FileAA: aaText},
		"cdh.toml": {initdata.FileCDH: cdhText},
		"both":     {initdata.FileAA: aaText, initdata.FileCDH: cdhText, "policy.coco": "{}"},
	} {
		got, err := Parse(files)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v, %s", name, err, d)
		}
	}
	got, err := Parse(map[string]string{
		initdata.FileAA: "insecure = true\n" + aaText + "deadline = \"5s\"\ntee_key_algorithm = \"ECDH-ES+A256KW-P521\"\n",
	})
	if err != nil || !got.Insecure || got.Deadline != 5*time.Second || got.Key != "ECDH-ES+A256KW-P521" {
		t.Errorf("Parse() = %+v, %v", got, err)
	}
}

func TestWhatNamesNoBroker(t *testing.T) {
	aa := func(text string) map[string]string { return map[string]string{initdata.FileAA: text} }
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing":            {nil, "names no key broker"},
		"no URL":             {aa("[token_configs.kbs]\ncert = \"PEM\"\n"), "names no key broker"},
		"no certificate":     {aa("[token_configs.kbs]\nurl = \"https://x\"\n"), "no certificate"},
		"no TOML":            {aa("["), "aa.toml: "},
		"an unknown key":     {aa(aaText + "proxy = \"x\"\n"), "does not know token_configs.kbs.proxy"},
		"an unknown table":   {aa(aaText + "[eventlog_config]\nenable_eventlog = true\n"), "eventlog_config"},
		"another kind":       {aa(aaText + "tee_key_algorithm = \"none\"\n"), "tee_key_algorithm"},
		"a deadline of text": {aa(aaText + "deadline = \"soon\"\n"), "no time from 1s"},
		"a long deadline":    {aa(aaText + "deadline = \"1h\"\n"), "no time from 1s"},
		"two brokers": {map[string]string{
			initdata.FileAA: aaText, initdata.FileCDH: strings.ReplaceAll(cdhText, "kbs:8080", "other:8080"),
		}, "the URL differs"},
		"two certificates": {map[string]string{
			initdata.FileAA: aaText, initdata.FileCDH: strings.ReplaceAll(cdhText, "PEM", "PAM"),
		}, "the certificate differs"},
		"another client": {map[string]string{
			initdata.FileCDH: strings.ReplaceAll(cdhText, "cc_kbc", "offline_fs_kbc"),
		}, "kbc.name"},
		"credentials": {map[string]string{
			initdata.FileCDH: "[[credentials]]\npath = \"x\"\n" + strings.ReplaceAll(cdhText, "credentials = []\n", ""),
		}, "cdh.toml"},
	} {
		if got, err := Parse(tc.files); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: Parse() = %+v, %v, want %q", name, got, err, tc.want)
		}
	}
}
