// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

// composed is a project of three services: a database with a volume, a health check and a secret, an application that
// waits for its health, and a web server with a published port. A fourth one is of a profile that is not asked for.
func composed() []Action {
	const project = `cd $D; echo hidden >word; cat >compose.yaml <<END
name: shop
services:
  db:
    image: $I
    runtime: ${R#--runtime }
    command: ["sh", "-c", "cat /run/secrets/word >>/data/rows; touch /ready; nc -ll -p 5432 -e cat /data/rows"]
    volumes: ["rows:/data"]
    secrets: [word]
    healthcheck: {test: [CMD, test, -e, /ready], interval: 1s, retries: 100}
  app:
    image: $I
    runtime: ${R#--runtime }
    command: ["sh", "-c", "mkdir -p /w; nc db 5432 </dev/null >/w/rows; echo serving; httpd -f -p 80 -h /w"]
    depends_on: {db: {condition: service_healthy}}
  web:
    image: $I
    runtime: ${R#--runtime }
    command: ["sh", "-c", "mkdir -p /w; until wget -q -O /w/rows http://app/rows; do sleep 0.2; done; httpd -f -p 80 -h /w"]
    ports: ["127.0.0.1:$P:80"]
    depends_on: [app]
  debug:
    image: $I
    command: ["false"]
    profiles: [debug]
secrets: {word: {file: ./word}}
volumes: {rows: {}}
END
rows() { wait_for sh -c "busybox wget -qO- http://127.0.0.1:$P/rows | grep -q hidden"; busybox wget -qO- http://127.0.0.1:$P/rows; echo .; }
c() { e compose --progress quiet "$@"; }
c up -d; rows
`
	end := "\nc down -v >/dev/null 2>&1"
	return []Action{
		{
			Name: "compose: three services, names, health, a secret, a profile", Only: Docker,
			Script: project + `c ps --format '{{.Service}} {{.State}}' | sort; c exec -T db cat /run/secrets/word
c logs --no-log-prefix app; c cp db:/data/rows - | tar xO` + end,
		},
		{
			Name: "compose: `logs -f`", Only: Docker,
			Script: project + `c logs -f --no-log-prefix app >$D/l 2>&1 & l=$!; wait_for grep -q serving $D/l; kill $l; cat $D/l` + end,
		},
		{
			Name: "compose: `restart`", Only: Docker,
			Script: project + `c restart -t 1 db; wait_for c exec -T db test -e /ready; c restart -t 1 app web; rows` + end,
		},
		{
			Name: "compose: `down` and `up` keep the volume's data", Only: Docker,
			Script: project + `c down -t 1; c up -d; rows` + end,
		},
		{
			Name: "compose: `top`", Only: Docker, Script: project + `c top >/dev/null; s=$?` + end + "; exit $s", Differ: &Difference{
				Outcome: Refused, Words: "run in a VM",
				What: "as `top`", WayOut: "`compose exec SERVICE ps`",
			},
		},
	}
}
