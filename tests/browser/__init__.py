"""The status page in Debian's Chromium, driven by playwright-core, over a gateway and pods that are processes.

| tests | promise | gateway |
|---|---|---|
| `test_sick_pods` | a killed pod's row turns red, with its reason, at once | its own |
| `test_coming_back` | a page outlives its gateway and comes back by itself; it holds up no end | its own |
| `test_without_script` | all is there without JavaScript, and renewed | the calm one |
| `test_looks` | light, dark and on a phone: axe-core finds nothing, and nothing overlaps | the calm one |
| `test_names` | names like HTML stay text, in the first page and in what is sent to it later | its own |
| `test_policy` | no script but its own, no other host; that these would be seen | the calm one |
| `test_viewers` | the token's dialogue; one viewer too many is told so | its own |
| `test_pictures` | the docs' pictures are there, and light | none |
| `test_reading` | what a reader has opened and focused stays as the page changes | its own |

What they want: `chromium` on the path; Node.js 20 or newer; what `package-lock.json` in `node/` names, by `npm ci`
there (`make test` does it). Without them pytest's summary says what did not run. The calm gateway (`conftest.calm`) has
a killed pod, a team at its limit and long names, and nothing happens there any more. The pictures are made by
`scripts/take_screenshots.py`, with the same `driver` and `scene`.
"""
