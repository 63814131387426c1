// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"
	"testing"
)

func TestSecretsOfAContainer(t *testing.T) {
	const uri = "kbs:///default/db/password"
	file := Secret{Resource: uri, File: "/run/secrets/db"}
	for _, tt := range []struct {
		name    string
		secrets []Secret
		want    string // "": valid
	}{
		{"a file", []Secret{file}, ""},
		{"a file with a mode", []Secret{{Resource: uri, File: "/etc/x", Mode: "444"}}, ""},
		{"a variable", []Secret{{Resource: uri, Env: "PASSWORD"}}, ""},
		{"one secret twice", []Secret{file, {Resource: uri, Env: "PASSWORD"}}, ""},
		{"neither", []Secret{{Resource: uri}}, "both or none of file and env"},
		{"both", []Secret{{Resource: uri, File: "/x", Env: "X"}}, "both or none of file and env"},
		{"two on one path", []Secret{file, file}, "is a mount or another secret already"},
		{"a path that is not clean", []Secret{{Resource: uri, File: "/a/../b"}}, "no absolute path"},
		{"a relative path", []Secret{{Resource: uri, File: "a"}}, "no absolute path"},
		{"the root", []Secret{{Resource: uri, File: "/"}}, "no absolute path"},
		{"a path of the kernel", []Secret{{Resource: uri, File: "/proc/self/x"}}, "the kernel's"},
		{"a mode of words", []Secret{{Resource: uri, File: "/x", Mode: "rw"}}, "no mode of a file"},
		{"a mode with a zero", []Secret{{Resource: uri, File: "/x", Mode: "0400"}}, "no mode of a file"},
		{"set-user-ID", []Secret{{Resource: uri, File: "/x", Mode: "4755"}}, "no mode of a file"},
		{"the mode of a variable", []Secret{{Resource: uri, Env: "X", Mode: "400"}}, "no mode of a file"},
		{"PATH", []Secret{{Resource: uri, Env: "PATH"}}, "decides which code runs"},
		{"LD_PRELOAD", []Secret{{Resource: uri, Env: "LD_PRELOAD"}}, "decides which code runs"},
		{"two variables of a name", []Secret{{Resource: uri, Env: "X"}, {Resource: uri, Env: "X"}}, "already"},
		{"a variable with a value", []Secret{{Resource: uri, Env: "X=1"}}, "no name of a variable"},
		{"another scheme", []Secret{{Resource: "http:///a/b/c", Env: "X"}}, "no URI"},
		{"an address", []Secret{{Resource: "kbs://host/a/b/c", Env: "X"}}, "no URI"},
		{"two segments", []Secret{{Resource: "kbs:///a/b", Env: "X"}}, "no URI"},
		{"dots", []Secret{{Resource: "kbs:///a/../c", Env: "X"}}, "no URI"},
		{"renewed every hour", []Secret{{Resource: uri, File: "/run/db/a", Renew: "1h"}}, ""},
		{"two renewed in one directory", []Secret{
			{Resource: uri, File: "/run/db/a", Renew: "1h"}, {Resource: uri, File: "/run/db/b", Renew: RenewOnRequest},
		}, ""},
		{"renewed too often", []Secret{{Resource: uri, File: "/run/db/a", Renew: "9s"}}, "neither on-request nor a time"},
		{"renewed too seldom", []Secret{{Resource: uri, File: "/run/db/a", Renew: "745h"}}, "neither on-request nor a time"},
		{"renewed sometimes", []Secret{{Resource: uri, File: "/run/db/a", Renew: "daily"}}, "neither on-request nor a time"},
		{"a renewed variable", []Secret{{Resource: uri, Env: "A", Renew: "1h"}}, "not for a variable"},
		{"renewed in the root", []Secret{{Resource: uri, File: "/a", Renew: "1h"}}, "below the root"},
		{"a renewed sealed text", []Secret{{Resource: uri, Env: "A", Sealed: true, Renew: "1h"}}, "not for a sealed text"},
		{"a file that stays beside a renewed one", []Secret{
			{Resource: uri, File: "/run/db/a", Renew: "1h"}, {Resource: uri, File: "/run/db/b"},
		}, "/run/db/b\", which is not renewed there"},
		{"a renewed file below a renewed one", []Secret{
			{Resource: uri, File: "/run/db/a", Renew: "1h"}, {Resource: uri, File: "/run/db/x/b", Renew: "1h"},
		}, "/run/db/x/b\", which is not renewed there"},
		{"renewed where a mount is", []Secret{{Resource: uri, File: "/etc/a", Renew: "1h"}}, "there is a mount on"},
		{"too many", make([]Secret, 65), "at most 64"},
	} {
		p := sample()
		p.Containers[0].Secrets = tt.secrets
		err := p.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: Validate() = %v, want %q", tt.name, err, tt.want)
		}
	}
}
