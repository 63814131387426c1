// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/coco-shim/coco/image/registry"
	"github.com/coco-shim/coco/trust/config"
)

// logins are users of registries, by what an auth.json has them for: a registry, or a repository or part of its name.
type logins map[string]registry.Login

// logins gets the auth.json from the key broker, if initdata names one.
func (p *puller) logins(how config.Images) (logins, error) {
	if how.Login == "" {
		return nil, nil
	}
	text, err := p.need("kbs:///" + how.Login)
	if err != nil {
		return nil, fmt.Errorf("logins of registries, kbs:///%s: %w", how.Login, err)
	}
	defer clear(text)
	out, err := parseLogins(text)
	if err != nil {
		return nil, fmt.Errorf("logins of registries, kbs:///%s: %w", how.Login, err)
	}
	return out, nil
}

// parseLogins reads the format of containers-auth.json(5) and of Docker's config.json. Its errors have nothing of it.
func parseLogins(text []byte) (logins, error) {
	var file struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, errors.New("the resource is no auth.json")
	}
	out := logins{}
	for at, a := range file.Auths {
		b, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("auths of %.100q has no auth with a name and a password in base64", at)
		}
		at = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(at, "https://"), "http://"), "/")
		if at == "index.docker.io/v1" {
			at = "docker.io"
		}
		out[at] = registry.Login{User: user, Password: password}
	}
	return out, nil
}

// find returns the login for a repository: that of its longest part which there is one for.
func (l logins) find(repository string) (registry.Login, bool) {
	for at := repository; ; {
		if u, ok := l[at]; ok {
			return u, true
		}
		i := strings.LastIndexByte(at, '/')
		if i < 0 {
			return registry.Login{}, false
		}
		at = at[:i]
	}
}
