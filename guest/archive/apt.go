// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Config is the text of an apt.conf with which apt keeps all its state below dir and reads nothing of the host's
// settings: Dir::Etc::main and ::parts, named in the file that APT_CONFIG names, are read behind that file. Settings
// that could weaken the checks of signatures are spelled out although they are apt's defaults. Ages of Release
// files are not left to apt: Release.Check judges them.
func Config(dir, arch string) string {
	return fmt.Sprintf(`Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist %[1]q;
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::trusted "/dev/null";
Dir::Etc::trustedparts "/dev/null";
Dir::Etc::netrc "/dev/null";
Dir::Etc::netrcparts "/dev/null";
Dir::State::lists %[2]q;
Dir::State::status "/dev/null";
Dir::State::extended_states "/dev/null";
Dir::Cache %[3]q;
APT::Architecture %[4]q;
APT::Architectures { %[4]q; };
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::https::Verify-Peer "true";
Acquire::https::Verify-Host "true";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
`, filepath.Join(dir, "etc/sources.list"), filepath.Join(dir, "lists"), filepath.Join(dir, "cache"), arch)
}

// passed are the variables that apt gets from the caller's environment: where the proxies are, no more.
var passed = []string{
	"http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
	"NO_PROXY", "TMPDIR",
}

// Env is apt's environment for the configuration in file config.
func Env(config string) []string {
	env := []string{
		"APT_CONFIG=" + config, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
		"DEBIAN_FRONTEND=noninteractive",
	}
	for _, name := range passed {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// CheckURL says whether s can stand in a line of apt's sources as the address of an archive, and is nothing else there,
// such as an option or a second line.
func CheckURL(s string) error {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:/_+-"
	scheme, rest, _ := strings.Cut(s, "://")
	if !slices.Contains([]string{"http", "https", "file"}, scheme) || strings.Trim(rest, plain) != "" ||
		strings.HasPrefix(rest, "/") != (scheme == "file") || len(rest) < 2 {
		return fmt.Errorf("archive %q: want an address such as https://deb.debian.org/debian (http, https or file), of "+
			"letters, digits and .:/_+-", s)
	}
	return nil
}

// Source is a line of apt's sources: packages of suite, signed by a key of keyring.
func Source(keyring, address, suite string) string {
	return fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, address, suite)
}

// ListName is the name under which apt keeps the InRelease file of a source in its lists.
func ListName(address, suite string) string {
	_, rest, _ := strings.Cut(address, "://")
	rest = strings.TrimRight(rest, "/") + "/dists/" + suite + "/InRelease"
	return strings.ReplaceAll(strings.ReplaceAll(rest, "_", "%5f"), "/", "_")
}
